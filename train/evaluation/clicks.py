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
Intervals are 95 %, over requests. The calibration was fitted on clicks of the same held-out time:
two numbers a scenario. Knows nothing of how the model was trained.
"""

# N impressions, U requests
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.attribution import Source
from train import simulator
from train.evaluation.click_coverage import Coverage, UncertainModel, coverage
from train.evaluation.click_measures import (
    Auc,
    BinnedRates,
    Flags,
    NormalisedEntropy,
    RelativeError,
)
from train.evaluation.click_rows import (
    ClickRows,
    LoggedRequest,
    Scorer,
    read_requests,
    validation_start,
)
from train.evaluation.intervals import NUM_RESAMPLES, Floats, Interval, statistic_interval
from train.evaluation.served import Asked, ServedBundle
from train.simulator.tables import IMPRESSIONS_NAME

GOALS = {"auc_share": 0.85, "gauc_share": 0.85, "true_ece": 0.05}  # at least, at least, at most
_MIN_CLICKS = 10  # of a source, for its figures to say anything
_MAX_TRAINING_REQUESTS = 20_000  # of each scenario, for the rivals


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickQuality:
    """Figures of the impressions of one scenario and one source, or of all sources."""

    num_requests: int
    num_impressions: int
    num_clicks: int
    auc: Interval
    oracle_auc: Interval
    auc_share: Interval
    gauc: Interval
    oracle_gauc: Interval
    gauc_share: Interval
    bias: Interval  # mean served probability / mean true probability - 1
    true_ece: Interval
    relative_ece: Interval
    oracle_ece: float
    normalised_entropy: Interval
    rival_entropy: dict[str, float]  # "position", "popularity", "overlap", "oracle"
    entropy_below_position: Interval  # normalised entropy - that of position only
    met: dict[str, bool]  # goal -> whether its point estimate meets it


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedQuality:
    """Calibration on items that the bundle picked for held-out queries, without sampling noise."""

    num_queries: int
    num_items: int
    mean_true: float
    bias: Interval
    true_ece: Interval
    first_bias: Interval  # of the items at position 1
    generated_bias: Interval  # of the items that the generator wrote; nan if there are none


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickEvaluation:
    """All figures; clicks are simulated."""

    fingerprint: str  # of the truth
    bundle_id: str
    goals: dict[str, float]
    logged: dict[str, dict[str, ClickQuality]]  # scenario -> source or "all"
    picked: dict[str, PickedQuality]  # scenario
    coverage: dict[str, dict[str, Coverage]]  # scenario -> "logged", "picked"


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
    for name in loaded.scenarios:
        own = [r for r in held_out if r.scenario == name]
        if not own:
            continue
        rows = scorer.scored(name, own, truth)
        rivals = _rivals(scorer, rows, [r for r in earlier if r.scenario == name])
        logged[name] = _by_source(rows, rivals, num_resamples, seed)
        covered[name] = {"logged": coverage(model, name, rows.inputs, rows.attraction_N)}
        own = [r for r in lists if r.scenario == name and r.texts]
        if own:
            rows = scorer.scored(name, own, truth)
            picked[name] = _picked_quality(rows, num_resamples, seed)
            covered[name]["picked"] = coverage(model, name, rows.inputs, rows.attraction_N)
    return ClickEvaluation(
        fingerprint=record.fingerprint,
        bundle_id=loaded.manifest.bundle_id,
        goals=GOALS,
        logged=logged,
        picked=picked,
        coverage=covered,
    )


def quality(
    rows: ClickRows,
    rivals: dict[str, Floats],
    mask: Flags | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> ClickQuality:
    """Returns the figures of some impressions of one scenario.

    Args:
        rows: impressions.
        rivals: name -> click probability float64 (N); "position" among them.
        mask: which rows; all if None.
        num_resamples: of the intervals.
        seed: of the intervals.

    Raises:
        ValueError: fewer than 10 clicks or skips, or a probability that is not a number.
    """
    mask = np.ones(len(rows.clicked_N), np.bool_) if mask is None else mask
    clicked, true, served = rows.clicked_N[mask], rows.true_N[mask], rows.served_N[mask]
    num_clicks = int(clicked.sum())
    if min(num_clicks, len(clicked) - num_clicks) < _MIN_CLICKS:
        raise ValueError(
            f"{num_clicks} of {len(clicked)} held-out impressions are clicked: ranking and "
            f"calibration need at least {_MIN_CLICKS} clicks and as many skips"
        )
    for name, values in (("served", served), ("true", true)):
        if not np.isfinite(values).all():
            raise ValueError(f"{int((~np.isfinite(values)).sum())} {name} probabilities are nan")
    requests, request_N = np.unique(rows.request_N[mask], return_inverse=True)
    position = rows.position_N[mask]

    def interval(statistic: Callable[[Floats], float]) -> Interval:
        return statistic_interval(
            lambda weight_U: statistic(weight_U[request_N]), len(requests), num_resamples, seed
        )

    auc, oracle_auc = Auc(served, clicked), Auc(true, clicked)
    gauc, oracle_gauc = Auc(served, clicked, position), Auc(true, clicked, position)
    entropy = NormalisedEntropy(served, clicked)
    rival_entropy = {n: NormalisedEntropy(p[mask], clicked) for n, p in rivals.items()}
    rival_entropy["oracle"] = NormalisedEntropy(true, clicked)
    ones = np.ones(len(clicked))
    figures = {
        "auc_share": interval(share(auc, oracle_auc)),
        "gauc_share": interval(share(gauc, oracle_gauc)),
        "true_ece": interval(RelativeError(served, true)),
    }
    below = interval(lambda w: entropy(w) - rival_entropy["position"](w))
    return ClickQuality(
        num_requests=len(requests),
        num_impressions=len(clicked),
        num_clicks=num_clicks,
        auc=interval(auc),
        oracle_auc=interval(oracle_auc),
        gauc=interval(gauc),
        oracle_gauc=interval(oracle_gauc),
        **figures,
        bias=interval(_bias(served, true)),
        relative_ece=interval(RelativeError(served, clicked.astype(np.float64))),
        oracle_ece=RelativeError(true, clicked.astype(np.float64))(ones),
        normalised_entropy=interval(entropy),
        rival_entropy={name: measure(ones) for name, measure in rival_entropy.items()},
        entropy_below_position=below,
        met={
            "auc_share": figures["auc_share"].mean >= GOALS["auc_share"],
            "gauc_share": figures["gauc_share"].mean >= GOALS["gauc_share"],
            "true_ece": figures["true_ece"].mean <= GOALS["true_ece"],
            "entropy_below_position": below.mean < 0,
        },
    )


def share(auc: Callable[[Floats], float], oracle: Callable[[Floats], float]) -> Callable:
    """Returns the share of the oracle's AUC above chance as a function of weights.

    nan where the oracle is no better than chance: then nothing can be known.
    """

    def value(weight_N: Floats) -> float:
        best = oracle(weight_N) - 0.5
        return (auc(weight_N) - 0.5) / best if best > 0 else float("nan")

    return value


def _bias(predicted_N: Floats, true_N: Floats) -> Callable[[Floats], float]:
    def value(weight_N: Floats) -> float:
        true = float(weight_N @ true_N)
        return float(weight_N @ predicted_N) / true - 1 if true > 0 else float("nan")

    return value


def _by_source(
    rows: ClickRows, rivals: dict[str, Floats], num_resamples: int, seed: int
) -> dict[str, ClickQuality]:
    """Returns the figures of all rows, and of each source that has enough clicks."""
    groups = {"all": np.ones(len(rows.clicked_N), np.bool_)}
    groups |= {name: rows.source_N == name for name in sorted(set(rows.source_N.tolist()))}
    return {
        name: quality(rows, rivals, mask, num_resamples=num_resamples, seed=seed)
        for name, mask in groups.items()
        if name == "all" or rows.clicked_N[mask].sum() >= _MIN_CLICKS
    }


def _rivals(scorer: Scorer, rows: ClickRows, earlier: list[LoggedRequest]) -> dict[str, Floats]:
    """Returns click probabilities of rivals that know one thing each, learnt before `rows`."""
    if not earlier:
        raise ValueError("there are no impressions before the held-out time: bring a longer log")
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
        num = (
            served.bundle.scenarios[name].num_suggestions if name in served.bundle.scenarios else 1
        )
        answers = served.answers(name, [Asked(q) for q in queries], num)
        lists += [
            LoggedRequest(
                name,
                query,
                [],
                answer.auxiliary_text,
                [s.text for s in answer.suggestions],
                [
                    "generated" if s.source == Source.GENERATED else "log"
                    for s in answer.suggestions
                ],
                [False] * len(answer.suggestions),
            )
            for query, answer in zip(queries, answers, strict=True)
        ]
    return lists


def _source(source: Source) -> str:
    """Returns the name in an impression log; what the log has, too, counts as from the log."""
    return "generated" if source == Source.GENERATED else "log"


def _picked_quality(rows: ClickRows, num_resamples: int, seed: int) -> PickedQuality:
    num_queries = len(rows.inputs)

    def interval(statistic: Callable[[Floats], float]) -> Interval:
        return statistic_interval(
            lambda weight_U: statistic(weight_U[rows.request_N]), num_queries, num_resamples, seed
        )

    def bias(mask_N: Flags) -> Interval:
        return interval(_bias(rows.served_N * mask_N, rows.true_N * mask_N))

    return PickedQuality(
        num_queries=num_queries,
        num_items=len(rows.true_N),
        mean_true=float(rows.true_N.mean()),
        bias=interval(_bias(rows.served_N, rows.true_N)),
        true_ece=interval(RelativeError(rows.served_N, rows.true_N)),
        first_bias=bias(rows.position_N == 1),
        generated_bias=bias(rows.source_N == "generated"),
    )
