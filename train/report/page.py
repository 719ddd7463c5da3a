"""The page of a report: which figures are shown, and how. Knows nothing of HTML."""

from collections.abc import Sequence

from train.alignment.history import AlignmentMetrics
from train.evaluation.intervals import Interval
from train.evaluation.page import Cell, Section, Table, page
from train.evaluation.plots import interval_plot, line_plot
from train.report.ablation import AblationRow
from train.report.closed_loop import LoopRound
from train.report.examples import Example
from train.report.report import AblationReport

_SIMULATED = (
    "Searches, popularity and clicks are simulated on real queries. The truth that scores the "
    "lists is hidden from all models; the questions are held-out queries that the run's log lacks."
)
_MILLE = 1000


def report_page(report: AblationReport) -> str:
    """Returns the whole page as HTML."""
    sections = [_ablation(report), _scenarios(report.ablation)]
    if report.second_world:
        note = "The same lists by another truth"
        if report.truths:
            own, other = report.truths
            note += f": {other}; that of the run has {own}"
        sections.append(_rows_section("In a second world", f"{note}.", report.second_world))
    sections.append(_rounds(report.rounds))
    if report.closed_loop:
        sections.append(_closed_loop(report.closed_loop, report.bundle_id))
    sections.append(_examples(report.examples))
    note = f"Bundle {report.bundle_id}. Brackets are 95 % intervals, by queries. {_SIMULATED}"
    if report.num_known:
        note += f" Left out are {report.num_known} that it has."
    return page("What each step of training adds", note, sections, warnings=report.warnings)


def _ablation(report: AblationReport) -> Section:
    beside = [row for row in (report.placebo, report.ceiling) if row is not None]
    gain, closed = report.alignment_gain, report.headroom_closed
    note = (
        f"Lists of {report.num_listed} texts that the generator alone writes, for "
        f"{report.num_questions} questions; the best ones are chosen of what SFT writes with "
        "co-occurrence. Gains are over SFT without co-occurrence, those of the placebo and of the "
        f"best by the truth over SFT with it. Alignment multiplies the true CTR by {gain.mean:.2f} "
        f"[{gain.low:.2f}, {gain.high:.2f}] and closes {100 * closed.mean:.0f} "
        f"[{100 * closed.low:.0f}, {100 * closed.high:.0f}] % of the way to the best by the truth. "
        f"{_placebo(report)}"
    )
    rows = [*report.ablation, *beside]
    section = _rows_section("Ablation", note, rows)
    plot = interval_plot([(row.name, _per_mille(row)) for row in rows], "true CTR, per mille")
    return Section(heading=section.heading, note=section.note, plots=[plot], tables=section.tables)


def _placebo(report: AblationReport) -> str:
    """Returns what the two alignments that are compared have learnt from."""
    if report.placebo_rounds is None:
        return ""
    (placebo,) = report.placebo_rounds.rounds
    aligned = report.rounds.rounds
    return (
        f"The placebo, whose reward means nothing, had one round of {placebo.num_prompts} prompts, "
        f"taken whole; the aligned generator {len(aligned)} of "
        f"{sum(r.num_prompts for r in aligned)} in all, taken as far as they helped. So the "
        "placebo shows what the procedure does by itself, not what as many prompts would do."
    )


def _rows_section(heading: str, note: str, rows: Sequence[AblationRow]) -> Section:
    table = Table(
        header=["system", "true CTR, per mille", "gain", "relevance", "distinct"],
        rows=[[r.name, _per_mille(r), r.gain, r.relevance, r.distinct] for r in rows],
        caption="Relevance: cosine of query and text. Distinct: texts a place.",
    )
    return Section(heading=heading, note=note, tables=[table])


def _scenarios(rows: Sequence[AblationRow]) -> Section:
    names = list(rows[0].by_scenario)
    cells: list[list[Cell]] = [
        [row.name, *(row.gain_by_scenario[name] for name in names)] for row in rows
    ]
    table = Table(header=["gain in true CTR", *names], rows=cells)
    return Section(heading="By scenario", tables=[table])


def _rounds(metrics: AlignmentMetrics) -> Section:
    rows: list[list[Cell]] = []
    for number, done in enumerate(metrics.rounds, start=1):
        for name, before in done.before.items():
            after = done.after[name]
            rows.append(
                [
                    f"{number}, {name}",
                    before.reward,
                    after.reward,
                    after.kl,
                    after.distinct,
                    after.known_share,
                    done.step,
                ]
            )
    header = ["round", "reward before", "after", "KL, nats", "distinct", "known", "step"]
    costs = Table(
        header=["round", "prompts", "left out", "lists", "drawing, s", "judging, s", "learning, s"],
        rows=[
            [n, r.num_prompts, r.num_equal, r.num_lists, r.draw_s, r.judge_s, r.update_s]
            for n, r in enumerate(metrics.rounds, start=1)
        ],
    )
    note = (
        f"Objective {metrics.objective}. The reward is what the click model expects of the lists "
        "for held-out logged prompts, not the truth."
    )
    return Section(
        heading="Rounds of alignment", note=note, tables=[Table(header=header, rows=rows), costs]
    )


def _closed_loop(rounds: Sequence[LoopRound], reported: str) -> Section:
    worth = {
        "fresh sessions": [r.sessions for r in rounds],
        "queries that no log holds": [r.unseen for r in rounds],
    }
    lines = {
        name: [(float(r.number), w.gain) for r, w in zip(rounds, column, strict=True)]
        for name, column in worth.items()
    }
    plot = line_plot(lines, "round", "gain in true CTR", from_zero=False)
    rows: list[list[Cell]] = [
        [r.number, r.num_requests, r.num_clicks, *(column[i].gain for column in worth.values())]
        for i, r in enumerate(rounds)
    ]
    table = Table(header=["round", "requests", "clicks", *worth], rows=rows)
    note = (
        "What a running engine serves, log and ranking included: simulated users ask it and click, "
        "the next bundle learns from its feedback beside the older log, and is swapped in."
    )
    if rounds[0].bundle_id != reported:
        note += f" It began with another bundle than that of this page: {rounds[0].bundle_id}."
    return Section(heading="The closed loop", note=note, plots=[plot], tables=[table])


def _examples(examples: Sequence[Example]) -> Section:
    rows: list[list[Cell]] = [
        [
            f"{e.scenario}: {e.query}",
            " | ".join(e.before),
            e.before_ctr * _MILLE,
            " | ".join(e.after),
            e.after_ctr * _MILLE,
        ]
        for e in examples
    ]
    header = ["question", "SFT", "per mille", "aligned", "per mille"]
    note = "The first questions of each scenario, in their random order."
    return Section(heading="Side by side", note=note, tables=[Table(header=header, rows=rows)])


def _per_mille(row: AblationRow) -> Interval:
    return Interval(row.true_ctr * _MILLE, row.ci_low * _MILLE, row.ci_high * _MILLE)
