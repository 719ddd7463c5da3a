"""The few figures of an evaluation that tell most, as lines for people.

Knows nothing of how they are computed.
"""

from train.evaluation.completion import ENGINE, CompletionReport
from train.evaluation.intervals import Interval
from train.evaluation.lists import TruthRow
from train.evaluation.retrieval import ALL, SERVED, RetrievalReport
from train.evaluation.suite import CtrSummary, Evaluation


def describe(evaluation: Evaluation) -> list[str]:
    """Returns warnings and at most five lines, with 95 % intervals in brackets.

    `eval.json` has the rest.
    """
    lines = [f"warning: {warning}" for warning in evaluation.warnings]
    if evaluation.completion is not None:
        lines.append(_completion(evaluation.completion))
    if evaluation.retrieval is not None:
        lines.append(_retrieval(evaluation.retrieval))
    if evaluation.lists:
        lines.append(_lists(evaluation.lists))
    if evaluation.ctr is not None:
        lines.append(_clicks(evaluation.ctr))
    if evaluation.left_out:
        lines.append(f"left out: {', '.join(evaluation.left_out)}")
    return lines


def _completion(report: CompletionReport) -> str:
    goals = {goal.slice: goal for goal in report.goals}
    parts: list[str] = []
    for score in report.scores:
        if score.system == ENGINE:
            part = f"{score.slice} {_interval(score.mrr)}"
            if goal := goals.get(score.slice):
                part += f", {goal.ratio.mean:.2f} of the {_words(goal.rival)}'s"
            parts.append(part)
    return f"completion, MRR@10: {'; '.join(parts)}"


def _retrieval(report: RetrievalReport) -> str:
    scores = {s.system: s.recall for s in report.scores if s.slice == ALL}
    served = scores.pop(SERVED)
    rivals = ", ".join(f"{_words(system)} {recall.mean:.3f}" for system, recall in scores.items())
    return f"retrieval, recall@20 of the next query: {_interval(served)}; {rivals}"


def _lists(rows: list[TruthRow]) -> str:
    parts: list[str] = []
    for row in rows:
        if row.system == "engine":
            part = f"{row.scenario} {_interval(row.list_value)}"
            if row.ratios:
                rival, ratio = min(row.ratios.items(), key=lambda r: r[1].mean)
                part += f", {ratio.mean:.2f} of the {_words(rival)}'s"
            parts.append(part)
    return f"simulated clicks on a list: {'; '.join(parts)}"


def _clicks(summary: CtrSummary) -> str:
    return (
        f"click model, of the oracle's AUC above 1/2: {summary.auc_share:.2f}, within a position "
        f"{summary.gauc_share:.2f}; calibration error {summary.ece_rel:.0%} at worst"
    )


def _interval(value: Interval) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _words(name: str) -> str:
    return name.replace("_", " ")
