"""How far a predicted p(click | seen) may be off, for rewards that must not trust what is unsure.

Two parts add up on the scale of the log odds:

- *what the log was too small to tell*: the Laplace approximation of the head's last layer, whose
  weights the clicks of the training time leave uncertain. The covariance is the sandwich
  `H^-1 G H^-1` with H the Fisher information of the clicks plus a prior and G the sum over
  requests of outer products of their gradients (White, 1982; clustered as in Liang and Zeger,
  1986), since clicks of one request are not independent. Far from the training data it grows.
- *what the model cannot see*: the relative variance of the true probability around the predicted
  one, from clicks alone. The same text shown for the same query in two requests i, j has
  `E[(y_i - p_i)(y_j - p_j)] = p_i p_j * variance`, so the ratio of sums over all such pairs
  estimates it without knowing the truth.

The true probability is taken as gamma distributed with the prediction as its mean: unlike a
log-normal one it has much mass near 0, as a text that fits or does not has. Knows nothing of the
backbone; the served graph needs none of it.
"""

# N impressions (rows), E activations of the head with a 1 for the intercept
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from train.clicks.calibration import Platt

FILE = "uncertainty.safetensors"
_PRIOR_PRECISION = 1.0  # of each weight of the last layer
# Relative variance of what the model cannot see, where clicks do not tell: of texts that the log
# knows and of others. From the truth of one simulated world, see docs/decisions.md.
PRIOR_SPREAD = (1.0, 2.0)
_PRIOR_SPREAD_SD = 0.5
# Relative. With more, nearly all mass is at 0, and upper bounds fall again; with less, no shape is
# finite.
_MIN_VARIANCE, _MAX_VARIANCE = 1e-8, 9.0
_MIN_LOG, _MAX_LOG = -740.0, 20.0  # between them lies the quantile of any such distribution
_NUM_HALVINGS = 50
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickUncertainty:
    """Intervals of p(click | seen) for candidates of a trained click model.

    `calibration` and `spread` hold two values a scenario, of texts that the log knows and of
    those that it does not. Arguments of the methods: the name of the panel; activations of the
    head's last layer without the 1 of the intercept; whether the log knows each text.
    """

    weight_E: Floats  # of the last layer, intercept last
    covariance_EE: Floats
    calibration: dict[str, tuple[Platt, Platt]]
    spread: dict[str, tuple[float, float]]  # relative variance of what the model cannot see

    def probability(
        self, scenario: str, activations_NE: NDArray[np.floating], is_known_N: Flags
    ) -> Floats:
        """Returns the calibrated p(click | seen), float64 (N)."""
        return self._moments(scenario, activations_NE, is_known_N)[0]

    def interval(
        self, scenario: str, activations_NE: NDArray[np.floating], is_known_N: Flags, level: float
    ) -> tuple[Floats, Floats]:
        """Returns the bounds between which the truth lies with probability `level`, (N) each.

        Raises:
            ValueError: `level` is not in (0, 1).
        """
        _check_level(level)
        p_N, variance_N = self._moments(scenario, activations_NE, is_known_N)
        low, high = 0.5 - level / 2, 0.5 + level / 2
        return _quantile(p_N, variance_N, low), _quantile(p_N, variance_N, high)

    def lower_bound(
        self,
        scenario: str,
        activations_NE: NDArray[np.floating],
        is_known_N: Flags,
        level: float = 0.8,
    ) -> Floats:
        """Returns what the truth exceeds with probability `level`, float64 (N).

        Raises:
            ValueError: `level` is not in (0, 1).
        """
        _check_level(level)
        p_N, variance_N = self._moments(scenario, activations_NE, is_known_N)
        return _quantile(p_N, variance_N, 1 - level)

    def _moments(
        self, scenario: str, activations_NE: NDArray[np.floating], is_known_N: Flags
    ) -> tuple[Floats, Floats]:
        """Returns the mean and the relative variance of the true probability."""
        x_NE = _with_one(activations_NE)
        known, unknown = self.calibration.get(scenario, (Platt(1.0, 0.0), Platt(1.0, 0.0)))
        slope_N, intercept_N = np.where(is_known_N[:, None], known, unknown).T
        p_N = _sigmoid(slope_N * (x_NE @ self.weight_E) + intercept_N)
        told_N = np.einsum("ne,ef,nf->n", x_NE, self.covariance_EE, x_NE)
        told_N *= (slope_N * (1 - p_N)) ** 2  # from log odds to logarithms of probabilities
        spreads = self.spread.get(scenario, PRIOR_SPREAD)
        return p_N, (1 + np.where(is_known_N, *spreads)) * (1 + told_N) - 1


def fit_covariance(
    activations_NE: NDArray[np.floating],
    weight_E: Floats,
    seen_N: Floats,
    clicked_N: Flags,
    request_N: Ids,
    num_requests: int,
) -> Floats:
    """Returns the covariance (E, E) of the last layer's weights, intercept last.

    Args:
        activations_NE: of a sample of the training requests, without the 1 of the intercept.
        weight_E: the trained weights, intercept last.
        seen_N: p(seen) of each row.
        clicked_N: clicks.
        request_N: request of each row, any numbers.
        num_requests: the model was trained on; the sample stands for all of them.

    Raises:
        ValueError: there are no rows.
    """
    if not len(clicked_N):
        raise ValueError("no impressions: uncertainty needs the clicks that the model learnt from")
    x_NE = _with_one(activations_NE)
    attraction_N = _sigmoid(x_NE @ weight_E)
    p_N = np.clip(seen_N * attraction_N, 1e-9, 1 - 1e-9)
    slope_N = p_N * (1 - attraction_N)  # dp / dlogit
    information_N = slope_N**2 / (p_N * (1 - p_N))
    score_N = (clicked_N - p_N) * slope_N / (p_N * (1 - p_N))
    _, row_N = np.unique(request_N, return_inverse=True)
    num_sampled = int(row_N.max()) + 1
    score_RE = np.zeros((num_sampled, x_NE.shape[1]))
    np.add.at(score_RE, row_N, score_N[:, None] * x_NE)
    scale = num_requests / num_sampled
    prior_EE = _PRIOR_PRECISION * np.eye(x_NE.shape[1])
    fisher_EE = scale * (x_NE * information_N[:, None]).T @ x_NE + prior_EE
    inverse_EE = np.linalg.inv(fisher_EE)
    # The prior counts as one more observation: where clicks say nothing, its variance remains.
    return inverse_EE @ (scale * score_RE.T @ score_RE + prior_EE) @ inverse_EE


def unseen_variance(predicted_N: Floats, clicked_N: Flags, pair_N: Ids, prior: float) -> float:
    """Returns the relative variance of the truth around the predictions, see the module's text.

    The estimate is weighed by its standard error against a prior: few repeated texts say little.
    Never negative, though noise can make the estimate so.

    Args:
        predicted_N: p(click | shown at its position), unbiased.
        clicked_N: clicks.
        pair_N: number of the row's scenario, query and text; a text occurs once in a request.
        prior: what is believed where no text is repeated.
    """
    _, pair_N = np.unique(pair_N, return_inverse=True)
    # Means over pairs of different rows, times rows: each impression counts once, or the few
    # texts that are shown most would decide.
    others_X = np.maximum(np.bincount(pair_N) - 1, 1)

    def products_X(value_N: Floats) -> Floats:
        products = np.bincount(pair_N, value_N) ** 2 - np.bincount(pair_N, value_N**2)
        return products.astype(np.float64)

    total = float((products_X(predicted_N) / others_X).sum())
    if total <= 1e-12:
        return prior
    estimate = float((products_X(clicked_N - predicted_N) / others_X).sum()) / total
    # As if there were no spread: where no text was clicked twice, the clicks do not show it.
    noise_N = predicted_N * (1 - predicted_N)
    variance = 2 * float((products_X(noise_N) / others_X**2).sum()) / total**2
    weight = _PRIOR_SPREAD_SD**2 / (_PRIOR_SPREAD_SD**2 + variance)
    return max(0.0, weight * estimate + (1 - weight) * prior)


def save_uncertainty(uncertainty: ClickUncertainty, directory: Path) -> None:
    """Writes uncertainty.safetensors."""
    names = sorted(uncertainty.spread)
    arrays = {
        "weight": uncertainty.weight_E,
        "covariance": uncertainty.covariance_EE,
        "calibration": np.array([uncertainty.calibration[name] for name in names]),
        "spread": np.array([uncertainty.spread[name] for name in names]),
    }
    save_file(arrays, directory / FILE, {"scenarios": " ".join(names)})


def load_uncertainty(directory: Path) -> ClickUncertainty:
    """Reads the uncertainty of a click model's directory.

    Raises:
        ValueError: it has none.
    """
    path = directory / FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing: train the click model again with this release")
    with safe_open(path, "numpy") as file:
        names = file.metadata()["scenarios"].split()
        calibration, spread = file.get_tensor("calibration"), file.get_tensor("spread")
        return ClickUncertainty(
            weight_E=file.get_tensor("weight"),
            covariance_EE=file.get_tensor("covariance"),
            calibration={
                name: (Platt(*known), Platt(*unknown))
                for name, (known, unknown) in zip(names, calibration.tolist(), strict=True)
            },
            spread={
                name: (known, unknown)
                for name, (known, unknown) in zip(names, spread.tolist(), strict=True)
            },
        )


def _with_one(activations_NE: NDArray[np.floating]) -> Floats:
    ones_N1 = np.ones((len(activations_NE), 1))
    return np.concatenate([activations_NE.astype(np.float64), ones_N1], axis=1)


def _sigmoid(level_N: Floats) -> Floats:
    return 1 / (1 + np.exp(-level_N))


def _quantile(mean_N: Floats, variance_N: Floats, level: float) -> Floats:
    """Returns quantiles of gamma distributions by mean and relative variance.

    By bisection on the logarithm: where variance is large, low quantiles are minute, and still
    differ as the means do.
    """
    variance_N = np.clip(variance_N, _MIN_VARIANCE, _MAX_VARIANCE)
    shape_N = torch.from_numpy(1 / variance_N)
    low_N, high_N = torch.full_like(shape_N, _MIN_LOG), torch.full_like(shape_N, _MAX_LOG)
    for _ in range(_NUM_HALVINGS):
        middle_N = (low_N + high_N) / 2
        is_below_N = torch.special.gammainc(shape_N, middle_N.exp()) < level
        low_N = torch.where(is_below_N, middle_N, low_N)
        high_N = torch.where(is_below_N, high_N, middle_N)
    return np.minimum(mean_N * variance_N * high_N.exp().numpy(), 1.0)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, must be between 0 and 1, both excluded")
