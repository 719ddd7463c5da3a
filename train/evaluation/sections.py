"""The page of an evaluation: which figures are shown, and how. Knows nothing of HTML."""

from train.evaluation.completion import BANDS, CompletionReport
from train.evaluation.intervals import Interval
from train.evaluation.lists import TruthRow
from train.evaluation.page import Section, Table, page
from train.evaluation.plots import interval_plot, line_plot
from train.evaluation.real_clicks import RealClickEvaluation
from train.evaluation.retrieval import RetrievalReport
from train.evaluation.sessions import SessionsReport
from train.evaluation.suite import CtrSummary, Evaluation

_SIMULATED = (
    "Searches, sessions, popularity and clicks are simulated on real queries: figures say how the "
    "parts compare, not what your users would do."
)


def evaluation_page(evaluation: Evaluation) -> str:
    """Returns the whole page as HTML."""
    sections: list[Section] = []
    if evaluation.lists:
        sections.append(_lists(evaluation.lists))
    if evaluation.completion is not None:
        sections.append(_completion(evaluation.completion))
    if evaluation.retrieval is not None:
        sections.append(_retrieval(evaluation.retrieval))
    if evaluation.sessions is not None:
        sections.append(_sessions(evaluation.sessions))
    if evaluation.ctr is not None:
        sections.append(_clicks(evaluation.ctr))
    if evaluation.real is not None:
        sections.append(_real(evaluation.real))
    if evaluation.left_out:
        rows = sorted(evaluation.left_out.items())
        sections.append(
            Section(heading="Left out", tables=[Table(header=["part", "why"], rows=rows)])
        )
    note = "Brackets are 95 % intervals. " + (_SIMULATED if evaluation.is_simulated else "")
    title = f"Bundle {evaluation.bundle_id}"
    return page(title, note, sections, warnings=evaluation.warnings)


def _lists(rows: list[TruthRow]) -> Section:
    names = list(dict.fromkeys(row.scenario for row in rows))
    plots = [
        interval_plot(
            [(f"{row.scenario}: {row.system}", row.list_value) for row in rows],
            "expected clicks on a list (simulated truth)",
        )
    ]
    tables: list[Table] = []
    for name in names:
        own = [row for row in rows if row.scenario == name]
        rivals = list(dict.fromkeys(rival for row in own for rival in row.ratios))
        tables.append(
            Table(
                header=["system", "queries", "N", "expected clicks", *(f"x {r}" for r in rivals)],
                rows=[
                    [row.system, row.num_queries, row.num_items, row.list_value,
                     *(row.ratios.get(r) for r in rivals)]
                    for row in own
                ],
                caption=name,
            )
        )  # fmt: skip
    note = (
        "Lists for held-out queries that the run's log lacks; their worth by the simulated truth."
    )
    return Section(heading="What lists are worth", note=note, plots=plots, tables=tables)


def _completion(report: CompletionReport) -> Section:
    slices = list(dict.fromkeys(score.slice for score in report.scores))
    plots: list[str] = []
    tables: list[Table] = []
    for name in slices:
        own = [score for score in report.scores if score.slice == name]
        lines = {
            score.system: [
                (sum(BANDS[band]) / 2, figure) for band, figure in score.mrr_by_length.items()
            ]
            for score in own
        }
        plots.append(line_plot(lines, f"characters typed ({name})", "MRR@10"))
        tables.append(
            Table(
                header=["system", "prefixes", "MRR@10", "success@10", *BANDS],
                rows=[
                    [s.system, s.num_queries, s.mrr, s.success, *map(s.mrr_by_length.get, BANDS)]
                    for s in own
                ],
                caption=f"{name}; MRR also by characters typed",
            )
        )
        scripts = list(own[0].mrr_by_script)
        if len(scripts) > 1:
            of_script = [f"{s} ({report.num_by_script[name][s]})" for s in scripts]
            by_script = [[s.system, *map(s.mrr_by_script.get, scripts)] for s in own]
            caption = f"{name}; MRR by script of the query (prefixes)"
            tables.append(Table(header=["system", *of_script], rows=by_script, caption=caption))
    goals = [[g.slice, g.rival, g.ratio, f"at least {g.at_least:g}", g.verdict]
             for g in report.goals]  # fmt: skip
    header = ["slice", "best rival", "engine's MRR over it", "goal", "verdict"]
    tables.append(Table(header=header, rows=goals, caption="Goals"))
    return Section(
        heading="Completion",
        note="Seen queries are drawn as often as they are searched after the cut; unseen ones are "
        "held-out queries that the run's log lacks.",
        plots=plots,
        tables=tables,
    )


def _retrieval(report: RetrievalReport) -> Section:
    rows = [[s.slice, s.system, s.num_cases, s.recall, s.served_less_this] for s in report.scores]
    header = ["query", "system", "cases", "recall@20", "served less this"]
    whole = [(s.system, s.recall) for s in report.scores if s.slice == "all"]
    return Section(
        heading="Retrieval of the next query",
        note="Slices are by how often the query was searched, in the whole log as in the index.",
        plots=[interval_plot(whole, "recall@20, all queries")],
        tables=[Table(header=header, rows=rows)],
    )


def _sessions(report: SessionsReport) -> Section:
    tables = [
        Table(header=["system", "MRR"], rows=[[s.system, s.mrr] for s in report.scores],
              caption="The true next query among 50 candidates"),
        Table(header=["system", "without", "with", "difference"],
              rows=[[a.system, a.without, a.with_answer, a.difference] for a in report.answers],
              caption="What the assistant's answer changes"),
    ]  # fmt: skip
    note = (
        f"{report.num_steps} steps of {report.num_sessions} sessions. The index knows "
        f"{report.known_share:.0%} of the true next queries."
    )
    return Section(heading="Real sessions", note=note, tables=[t for t in tables if t.rows])


def _clicks(summary: CtrSummary) -> Section:
    clicks = summary.details
    rows = [
        [f"{scenario}, {source}", q.num_impressions, q.auc, q.auc_share, q.gauc_share, q.bias,
         q.true_ece, q.normalised_entropy, q.rival_entropy["position"]]
        for scenario, by_source in clicks.logged.items()
        for source, q in by_source.items()
    ]  # fmt: skip
    header = ["impressions", "number", "AUC", "AUC share", "GAUC share", "bias",
              "calibration error", "normalised entropy", "position only"]  # fmt: skip
    picked = [[name, p.num_items, p.mean_true, p.bias, p.true_ece, p.first_bias, p.generated_bias]
              for name, p in clicks.picked.items()]  # fmt: skip
    covered = [
        [f"{scenario}, {which}", c.num_items, *c.inside.values(), c.above, c.lower_share]
        for scenario, by_kind in clicks.coverage.items()
        for which, c in by_kind.items()
    ]
    levels = next((list(c.inside) for k in clicks.coverage.values() for c in k.values()), [])
    return Section(
        heading="Click model",
        note="Shares are of what an oracle that knows the simulated truth reaches above chance. "
        "Bias and calibration error are relative, against true probabilities.",
        tables=[
            Table(header=header, rows=rows, caption="Held-out impressions"),
            Table(
                header=["picked by the bundle", "items", "true mean", "bias", "calibration error",
                        "bias at position 1", "bias of generated"],
                rows=picked,
                caption="Lists for held-out queries",
            ),
            Table(
                header=["uncertainty", "items", *(f"inside {level}" for level in levels),
                        "above lower bound", "lower bound / mean"],
                rows=covered,
                caption="How often intervals hold the truth",
            ),
        ],
    )  # fmt: skip


def _real(real: RealClickEvaluation) -> Section:
    rows: list[list[str | Interval | None]] = [
        ["features and position", real.model, None],
        ["features", real.without_position, None],
        *([name, real.rivals[name], real.gains[name]] for name in real.rivals),
    ]
    note = (
        f"{real.num_panes} panes of {real.num_queries} queries, five folds by query. Share of "
        "pairs of options ordered rightly; one half is chance."
    )
    header = ["ranked by", "pairs right", "features and position less this"]
    return Section(heading="Real clicks", note=note, tables=[Table(header=header, rows=rows)])
