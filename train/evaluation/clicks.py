"""How good a bundle's click model is, where the truth of the clicks is known: simulated logs.

Held-out impressions are ranked and calibrated against the clicks and against the oracle, the
truth's own click probabilities, per scenario and per source of the text:

- `auc_share = (AUC - 1/2) / (AUC of the oracle - 1/2)`: which part of what can be known is known.
- `gauc_share`: the same for pairs at the same position of one scenario only, so that knowing
  positions earns nothing. (Within a request the pairs would differ in position.)
- `relative_ece`: calibration error over 10 bins of equal mass, relative to the mean. Against
  clicks its floor is sampling noise, which `oracle_ece` shows; against the true probabilities
  (`true_ece`) there is no such floor. Goals are judged by the latter.
- `normalised_entropy` beside that of rivals that know one thing, learnt from the training time.

The same figures of calibration are given for *picked* items: lists that the bundle itself makes
for queries it never saw, where a click model that is wrong is wrong in favour of what it picks.
Intervals are 95 %, over queries. The calibration was fitted on clicks of the same held-out time:
two numbers a scenario. Knows nothing of how the model was trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.feedback.attribution import Source
from train import simulator
from train.evaluation.click_coverage import Coverage, UncertainModel, coverage
from train.evaluation.click_measures import BinnedRates
from train.evaluation.click_quality import (
    GOALS,
    MIN_CLICKS,
    ClickQuality,
    PickedQuality,
    picked_quality,
    quality,
)
from train.evaluation.click_rows import (
    ClickRows,
    LoggedRequest,
    Scorer,
    read_requests,
    validation_start,
)
from train.evaluation.intervals import NUM_RESAMPLES, Floats
from train.evaluation.served import Asked, ServedBundle
from train.simulator.tables import IMPRESSIONS_NAME

_MAX_TRAINING_REQUESTS = 20_000  # for the rivals


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickEvaluation:
    """All figures; clicks are simulated."""

    fingerprint: str  # of the truth
    bundle_id: str
    goals: dict[str, float]
    logged: dict[str, dict[str, ClickQuality]]  # scenario -> source or "all"
    picked: dict[str, PickedQuality]  # scenario
    coverage: dict[str, dict[str, Coverage]]  # scenario -> "logged", "picked"
    left_out: dict[str, str]  # scenario -> why


def evaluate_clicks(
    served: ServedBundle,
    run: Path,
    questions: Sequence[tuple[str, str]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> ClickEvaluation:
    """Evaluates the click model of a bundle that was trained on simulated logs.

    Args:
        served: the bundle.
        run: run directory it was exported from; simulated/ and mined/ are read.
        questions: (scenario, query or prefix) that occur nowhere in the log; may be empty.
        num_resamples: of the intervals.
        seed: of the intervals and of the choice of training rows.

    Raises:
        LeftOut: nothing was held out.
        ValueError: the run is not of simulated logs, the bundle has no click model, a scenario
            of a question is unknown, or the held-out time has no clicks.
    """
    world = run / "simulated"
    record = simulator.read_record(world)
    truth = simulator.load(world)
    loaded = served.bundle
    scorer = Scorer(loaded)
    lists = _picked(served, questions)
    cut = validation_start(run / "mined")
    held_out = read_requests(world / IMPRESSIONS_NAME, since=cut)
    earlier = read_requests(
        world / IMPRESSIONS_NAME, until=cut, max_requests=_MAX_TRAINING_REQUESTS, seed=seed
    )
    model = UncertainModel(run / "click_model")
    logged: dict[str, dict[str, ClickQuality]] = {}
    picked: dict[str, PickedQuality] = {}
    covered: dict[str, dict[str, Coverage]] = {}
    left_out: dict[str, str] = {}
    for name in loaded.scenarios:
        own = [r for r in held_out if r.scenario == name]
        num_clicks = sum(sum(r.clicked) for r in own)
        if num_clicks < MIN_CLICKS:
            left_out[name] = f"{num_clicks} held-out clicks, {MIN_CLICKS} are needed"
            continue
        before = [r for r in earlier if r.scenario == name]
        if not before:
            left_out[name] = "there are no impressions before the held-out time"
            continue
        rows = scorer.scored(name, own, truth)
        rivals = _rivals(scorer, rows, before)
        logged[name] = _by_source(rows, rivals, num_resamples, seed)
        covered[name] = {"logged": coverage(model, name, rows.inputs, rows.attraction_N)}
        own = [r for r in lists if r.scenario == name and r.texts]
        if own:
            rows = scorer.scored(name, own, truth)
            picked[name] = picked_quality(rows, num_resamples=num_resamples, seed=seed)
            covered[name]["picked"] = coverage(model, name, rows.inputs, rows.attraction_N)
    return ClickEvaluation(
        fingerprint=record.fingerprint,
        bundle_id=loaded.manifest.bundle_id,
        goals=GOALS,
        logged=logged,
        picked=picked,
        coverage=covered,
        left_out=left_out,
    )


def _by_source(
    rows: ClickRows, rivals: dict[str, Floats], num_resamples: int, seed: int
) -> dict[str, ClickQuality]:
    """Returns the figures of all rows, and of each source that has enough clicks."""
    groups = {"all": np.ones(len(rows.clicked_N), np.bool_)}
    groups |= {name: rows.source_N == name for name in sorted(set(rows.source_N.tolist()))}
    return {
        name: quality(rows, rivals, mask, num_resamples=num_resamples, seed=seed)
        for name, mask in groups.items()
        if name == "all" or rows.clicked_N[mask].sum() >= MIN_CLICKS
    }


def _rivals(scorer: Scorer, rows: ClickRows, earlier: list[LoggedRequest]) -> dict[str, Floats]:
    """Returns click probabilities of rivals that know one thing each, learnt before `rows`."""
    clicked_N = np.array([c for r in earlier for c in r.clicked])
    before = scorer.features(earlier)
    known = {"position": rows.position_N, "popularity": rows.popularity_N,
             "overlap": rows.overlap_N}  # fmt: skip
    return {
        name: BinnedRates(before[name], clicked_N)(value_N.astype(np.float64))
        for name, value_N in known.items()
    }


def _picked(served: ServedBundle, questions: Sequence[tuple[str, str]]) -> list[LoggedRequest]:
    """Returns the lists that the bundle makes, as if they had been logged without a click."""
    lists: list[LoggedRequest] = []
    for name in dict.fromkeys(scenario for scenario, _ in questions):
        queries = [query for scenario, query in questions if scenario == name]
        num = served.scenario(name).num_suggestions
        answers = served.answers(name, [Asked(q) for q in queries], num)
        lists += [
            LoggedRequest(
                name,
                query,
                [],
                answer.auxiliary_text,
                [s.text for s in answer.suggestions],
                [_source(s.source) for s in answer.suggestions],
                [False] * len(answer.suggestions),
            )
            for query, answer in zip(queries, answers, strict=True)
        ]
    return lists


def _source(source: Source) -> str:
    """Returns the name in an impression log; what the log has, too, counts as from the log."""
    return "generated" if source == Source.GENERATED else "log"
