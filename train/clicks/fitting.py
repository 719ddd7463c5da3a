"""What is fitted to a trained click model's logits: examination, calibration, uncertainty.

The logits stay as they are. Knows nothing of how the model was trained.
"""

# R requests, N impressions (rows), P positions, E activations of the head
import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engine.formats.features import FEATURE_NAMES
from train.clicks.calibration import Examination, Platt, fit_examination, fit_platt, seen_at
from train.clicks.data import ClickRequests
from train.clicks.model import ClickModel
from train.clicks.scoring import click_activations, click_logits
from train.clicks.uncertainty import (
    PRIOR_SPREAD,
    ClickUncertainty,
    fit_covariance,
    unseen_variance,
)

_MAX_SAMPLED = 16_000  # training requests beside the explored ones: curves are then good to 2 %
_MIN_SPREAD = 1e-4  # of logits; less means that the model says the same for everything
_MIN_ROWS = 10  # of a scenario, from which on their spread tells something
_IS_KNOWN = FEATURE_NAMES.index("is_known")
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


class HalfFit(NamedTuple):
    """Calibrations by scenario, fitted to the other half of the requests."""

    calibrations: dict[str, Platt]
    unknown_calibrations: dict[str, Platt]  # of texts that the log does not know


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickFit:
    """What goes with a click model, by scenario."""

    examinations: dict[str, Examination]  # of scenarios with training impressions
    calibrations: dict[str, Platt]
    unknown_calibrations: dict[str, Platt]  # of texts that the log does not know
    uncertainty: ClickUncertainty
    # By `half`: what a half can be measured with; it is among what the others were fitted to.
    halves: list[HalfFit]


def fit_click_model(
    model: ClickModel,
    requests: ClickRequests,
    valid_logits: Floats,
    raw: ClickRequests | None,
    *,
    hidden_share: float,
    seed: int,
) -> ClickFit:
    """Returns what is fitted to training requests (curves) and held-out ones (calibration).

    Args:
        model: trained.
        requests: mined ones; some are held out.
        valid_logits: of the rows of the held-out ones, in their order.
        raw: held-out requests with texts that the log does not know (see `train.clicks.unknown`);
            None: such texts are calibrated with the others.
        hidden_share: of training, see `train.clicks.batches.make_batch`.
        seed: of the sample of training requests.

    Raises:
        ValueError: the model says the same for everything.
    """
    train, valid = np.flatnonzero(~requests.is_valid_R), np.flatnonzero(requests.is_valid_R)
    explored = np.unique(requests.request_N[requests.rank_N != requests.position_N])
    sample = np.random.default_rng(seed).permutation(train)[:_MAX_SAMPLED]
    sample = np.union1d(sample, np.intersect1d(train, explored))
    examinations = _examinations(requests, sample, click_logits(model, requests, sample))
    # Mined texts that the log does not know are not like others: they were clicked often.
    is_known_N = None if raw is None else is_known(requests, requests.rows(valid))
    calibrations = _calibrations(requests, valid, valid_logits, examinations, is_known_N)
    known_halves = _half_calibrations(requests, valid, valid_logits, examinations, is_known_N)
    unknown_halves = known_halves
    spreads = _spreads(
        requests, valid, valid_logits, examinations, calibrations, PRIOR_SPREAD[0], is_known_N
    )
    unknown_calibrations = calibrations
    unknown_spreads = dict.fromkeys(requests.scenarios, PRIOR_SPREAD[1])
    if raw is not None:
        chosen = np.arange(len(raw))
        logits = click_logits(model, raw, chosen)
        is_unknown_N = ~is_known(raw, raw.rows(chosen))
        unknown_calibrations = _calibrations(
            raw, chosen, logits, examinations, is_unknown_N, calibrations
        )
        unknown_halves = _half_calibrations(
            raw, chosen, logits, examinations, is_unknown_N, known_halves
        )
        unknown_spreads = _spreads(
            raw, chosen, logits, examinations, unknown_calibrations, PRIOR_SPREAD[1], is_unknown_N
        )
    # As in training: some candidates are without popularity and association.
    activations_NE = click_activations(
        model, requests, sample, hidden_share=hidden_share, seed=seed
    )
    rows, weight_E = requests.rows(sample), _last_layer(model)
    covariance_EE = fit_covariance(
        activations_NE,
        weight_E,
        _seen_everywhere(requests, rows, examinations),
        requests.clicked_N[rows],
        requests.request_N[rows],
        len(train),
    )
    uncertainty = ClickUncertainty(
        weight_E=weight_E,
        covariance_EE=covariance_EE,
        calibration={n: (calibrations[n], unknown_calibrations[n]) for n in calibrations},
        spread={n: (spreads[n], unknown_spreads[n]) for n in calibrations},
    )
    return ClickFit(
        examinations=examinations,
        calibrations=calibrations,
        unknown_calibrations=unknown_calibrations,
        uncertainty=uncertainty,
        halves=list(map(HalfFit, known_halves, unknown_halves)),
    )


def half(requests: ClickRequests, chosen: Ids) -> Ids:
    """Returns 0 or 1 of each row of the chosen requests, int64 (N).

    By the context, so that requests that are alike are in the same half.
    """
    half_R = np.zeros(len(requests.contexts), np.int64)
    for request in chosen:
        context = array("i", requests.contexts[request]).tobytes()
        half_R[request] = hashlib.md5(context).digest()[0] % 2
    return half_R[requests.request_N[requests.rows(chosen)]]


def check_logits(scenario: str, logits_N: Floats, *, may_be_equal: bool = False) -> None:
    """Refuses a model that says the same for every candidate.

    Args:
        scenario: name of the panel.
        logits_N: of its rows.
        may_be_equal: whether these rows are too few, or too much alike, to tell.

    Raises:
        ValueError: the logits are all (nearly) equal, or not numbers.
    """
    spread = float(np.ptp(logits_N))
    if not spread >= (0.0 if may_be_equal else _MIN_SPREAD):  # also where logits are nan
        raise ValueError(
            f"the click model gives every {scenario} candidate the logit {logits_N[0]:.4g} "
            f"(spread {spread:.2g}): it learned nothing; lower click_model.learning_rate "
            "or bring more impressions"
        )


def is_known(requests: ClickRequests, rows: Ids) -> Flags:
    """Returns of which rows the log knows the text."""
    return requests.features_NF[rows, _IS_KNOWN] > 0


def scenario_rows(
    requests: ClickRequests, rows: Ids, among_N: Flags | None = None
) -> dict[str, Flags]:
    """Returns, per scenario that occurs, which of `rows` are its, and in `among_N` if given."""
    scenario_N = requests.scenario_R[requests.request_N[rows]]
    masks = {name: scenario_N == i for i, name in enumerate(requests.scenarios)}
    if among_N is not None:
        masks = {name: mask & among_N for name, mask in masks.items()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def seen_probability(examination: Examination | None, position_N: Ids) -> NDArray[np.floating]:
    """Returns p(seen) of positions, see `train.clicks.calibration.seen_at`."""
    return seen_at(() if examination is None else examination.seen_P, position_N)


def _examinations(requests: ClickRequests, chosen: Ids, logits: Floats) -> dict[str, Examination]:
    rows = requests.rows(chosen)
    result: dict[str, Examination] = {}
    for name, mask in scenario_rows(requests, rows).items():
        own = rows[mask]
        result[name] = fit_examination(
            logits[mask],
            requests.position_N[own],
            requests.rank_N[own],
            requests.clicked_N[own],
        )
    return result


def _seen_everywhere(
    requests: ClickRequests, rows: Ids, examinations: dict[str, Examination]
) -> NDArray[np.float64]:
    """Returns p(seen) of rows of any scenario."""
    seen_N = np.ones(len(rows))
    for name, mask in scenario_rows(requests, rows).items():
        seen_N[mask] = seen_probability(examinations.get(name), requests.position_N[rows[mask]])
    return seen_N


def _calibrations(
    requests: ClickRequests,
    chosen: Ids,
    logits: Floats,
    examinations: dict[str, Examination],
    among_N: Flags | None = None,
    start: dict[str, Platt] | None = None,
) -> dict[str, Platt]:
    """Returns slope and intercept per scenario, near those of `start` where there are few rows.

    Where no row is among those asked for: those of `start`, or, without it, of all rows.
    """
    rows = requests.rows(chosen)
    result = dict(start or {name: Platt(1.0, 0.0) for name in requests.scenarios})
    for name, every in scenario_rows(requests, rows).items():
        check_logits(name, logits[every], may_be_equal=_are_alike(requests, rows[every]))
        mask = every if among_N is None else every & among_N
        if not mask.any():
            if start is not None:
                continue
            mask = every
        own = rows[mask]
        seen_N = seen_probability(examinations.get(name), requests.position_N[own])
        slope, intercept = result[name]
        platt = fit_platt(slope * logits[mask] + intercept, seen_N, requests.clicked_N[own])
        result[name] = Platt(platt.slope * slope, platt.slope * intercept + platt.intercept)
    return result


def _half_calibrations(
    requests: ClickRequests,
    chosen: Ids,
    logits: Floats,
    examinations: dict[str, Examination],
    among_N: Flags | None,
    starts: Sequence[dict[str, Platt] | None] = (None, None),
) -> list[dict[str, Platt]]:
    """Returns for each half the `_calibrations` by the other."""
    half_N = half(requests, chosen)
    among_N = np.ones(len(half_N), np.bool_) if among_N is None else among_N
    return [
        _calibrations(requests, chosen, logits, examinations, among_N & (half_N != own), start)
        for own, start in enumerate(starts)
    ]


def _are_alike(requests: ClickRequests, rows: Ids) -> bool:
    """Returns whether rows are few, or all of one context and text."""
    if len(rows) < _MIN_ROWS:
        return True
    contexts = [requests.contexts[r] for r in np.unique(requests.request_N[rows])]
    is_one_text = len(np.unique(requests.candidate_N[rows])) == 1
    return is_one_text and all(context == contexts[0] for context in contexts)


def _last_layer(model: ClickModel) -> NDArray[np.float64]:
    """Returns the weights of the head's last layer, float64 (E), its bias last."""
    parts = (model.head.out.weight.flatten(), model.head.out.bias)
    return torch.cat(parts).detach().cpu().double().numpy()


def _spreads(
    requests: ClickRequests,
    chosen: Ids,
    logits: Floats,
    examinations: dict[str, Examination],
    calibrations: dict[str, Platt],
    prior: float,
    among_N: Flags | None = None,
) -> dict[str, float]:
    """Returns per scenario how much truths vary around predictions, see train.clicks.uncertainty.

    Near `prior` where there are few rows, and it where there are none.
    """
    rows = requests.rows(chosen)
    request_N = requests.request_N[rows]
    pair_N = requests.query_R[request_N] * len(requests.candidates) + requests.candidate_N[rows]
    spreads = dict.fromkeys(requests.scenarios, prior)
    for name, mask in scenario_rows(requests, rows, among_N).items():
        slope, intercept = calibrations[name]
        seen_N = seen_probability(examinations.get(name), requests.position_N[rows[mask]])
        p_N = seen_N / (1 + np.exp(-(slope * logits[mask].astype(np.float64) + intercept)))
        spreads[name] = unseen_variance(p_N, requests.clicked_N[rows[mask]], pair_N[mask], prior)
    return spreads
