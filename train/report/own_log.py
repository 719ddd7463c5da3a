"""A bundle against a log whose truth is not known: replay, and another click model's word.

See `train.evaluation.replay` for what is estimated and how far it can be trusted.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from engine.formats.prompt import ANSWER, SESSION
from train.clicks.calibration import read_examination
from train.clicks.judge import ClickJudge, Judged
from train.config import read_config
from train.evaluation.origin import doubts
from train.evaluation.replay import Floats, Replayed, Shown, compare, read_panels
from train.evaluation.served import Asked, ServedBundle

Report = Callable[[str], None]


class OwnLogReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a bundle compares with what a log showed.

    Attributes:
        bundle_id: of the bundle.
        is_simulated: whether the log is.
        has_judge: whether another click model was asked.
        scenarios: by name.
        warnings: what makes figures doubtful.
    """

    bundle_id: str
    is_simulated: bool
    has_judge: bool
    scenarios: dict[str, Replayed]
    warnings: list[str] = []

    def describe(self) -> list[str]:
        """Returns lines for people, warnings first."""
        lines = [f"warning: {warning}" for warning in self.warnings]
        for name, r in self.scenarios.items():
            lines.append(
                f"{name}: {r.num_requests} requests, {r.num_clicks} clicks; {r.coverage:.0%} of "
                "the bundle's texts were shown then. Bundle over log, 95 % intervals:"
            )
            for what, ratio in (
                (f"  exact, {r.num_exact} places with the same text", r.exact),
                ("  order of the texts that both have", r.order),
                ("  the same, if texts never shown are never clicked", r.at_least),
                ("  judge", r.judge),
            ):
                if ratio is not None:
                    lines.append(f"{what}: {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
            if r.judged_over_clicked is not None:
                lines.append(
                    f"  the judge expected {r.judged_over_clicked:.2f} of the clicks that came"
                )
        return lines


def replay(
    run: Path,
    bundle: Path,
    *,
    judge: Path | None,
    num_requests: int,
    seed: int,
    report: Report = print,
) -> OwnLogReport:
    """Returns how a bundle would have done at the requests of a run's log that were held out.

    Args:
        run: run directory whose log is replayed; its click model says how positions are seen.
        bundle: answers the requests.
        judge: run directory of a click model that was trained on other data.
        num_requests: of each scenario at most.
        seed: of their draw.
        report: called with what is being done.

    Raises:
        ValueError: nothing was held out, there is no click model, or the judge is the run's own.
    """
    if judge is not None and judge.resolve() == run.resolve():
        raise ValueError(
            f"--judge {judge} is the run itself: its click model has taught the bundle what to "
            "write, so its word counts for nothing; train one on other users or another time"
        )
    seen = read_examination(run)
    panels = read_panels(run, num=num_requests, seed=seed)
    asks = (
        ClickJudge(judge, max_edges=read_config(judge / "config.toml").index.max_edges)
        if judge is not None
        else None
    )
    served = ServedBundle(bundle)
    warnings = doubts(served.bundle.manifest, run)
    try:
        compared: dict[str, Replayed] = {}
        for scenario, shown in panels.items():
            report(f"{scenario}: {len(shown)} requests")
            num = served.scenario(scenario).num_suggestions
            shown = [_first(panel, num) for panel in shown]
            lists = served.texts(scenario, [_asked(panel) for panel in shown], num)
            judged = _judged(asks, shown, lists) if asks is not None else None
            compared[scenario] = compare(shown, lists, seen.get(scenario, ()), judged)
        return OwnLogReport(
            bundle_id=served.bundle.manifest.bundle_id,
            is_simulated=(run / "simulated/world.json").is_file(),
            has_judge=judge is not None,
            scenarios=compared,
            warnings=warnings,
        )
    finally:
        served.close()


def _asked(panel: Shown) -> Asked:
    side = panel.side_information
    return Asked(
        panel.query,
        session_queries=tuple(item.text for item in side if item.kind == SESSION),
        answer=next((item.text for item in side if item.kind == ANSWER), ""),
        # The log has what matters most last, a request first.
        side_information=tuple(i for i in reversed(side) if i.kind not in (SESSION, ANSWER)),
    )


def _first(panel: Shown, num: int) -> Shown:
    """Returns a panel with its first places alone: lists of equal length are compared."""
    return panel._replace(
        texts=panel.texts[:num], clicked=panel.clicked[:num], propensity=panel.propensity[:num]
    )


def _judged(
    judge: ClickJudge, panels: Sequence[Shown], lists: Sequence[Sequence[str]]
) -> list[tuple[Floats, Floats]]:
    """Returns p(click | seen) of the texts of each panel and list; 0 where there is no text."""
    questions: list[Judged] = []
    for panel, texts in zip(panels, lists, strict=True):
        together = list(dict.fromkeys([t for t in (*panel.texts, *texts) if t]))
        questions.append(
            Judged(panel.scenario, panel.query, panel.side_information, together or [panel.query])
        )
    judged: list[tuple[Floats, Floats]] = []
    answers = judge(questions, level=0.5)
    for question, judgement, panel, texts in zip(questions, answers, panels, lists, strict=True):
        p_of = dict(zip(question.texts, judgement.p_seen_C.tolist(), strict=True))
        then, now = ([p_of[t] if t else 0.0 for t in part] for part in (panel.texts, texts))
        judged.append((np.array(then), np.array(now)))
    return judged
