"""Real clicks on the options of a pane: do the click model's features say which one is clicked?

For a file of few queries such as MIMICS-Duo (a clarifying question with up to five options, and
the share of the pane's clicks that each option got), where nothing as large as the click model
can be trained. So it is the model's ingredients that are tested, all fixed before any result: the
features of `engine.formats.features` for query and option, popularity counted within the training
folds, and positions, in one linear model of the choice among a pane's options,

    p(option i gets the click) = softmax_i(position effect + w . features_i),

the conditional logit (McFadden, 1974), with a Gaussian prior on the standardised weights. Folds are
by query. The figure is the mean over queries of the share of pairs of options of one pane, one
clicked more than the other, that are ordered rightly; ties of a score count half. Knows nothing of
simulated logs.
"""

# N options (rows), Q queries, F features, P positions
import csv
import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engine.formats.features import FEATURE_NAMES, candidate_features
from engine.formats.manifest import ScenarioSpec
from engine.formats.text import normalise
from train.evaluation.files import reading
from train.evaluation.intervals import (
    NUM_RESAMPLES,
    Floats,
    Interval,
    difference_interval,
    mean_interval,
)

_COLUMNS = ("query", "pos", "option", "cctr")
_PRIOR_PRECISION = 1.0  # of each standardised weight, against a loss summed over panes
_OVERLAP = FEATURE_NAMES.index("trigram_overlap")
_PANEL = ScenarioSpec(
    name="clarification", description="", has_auxiliary_text=True, position_ctr=[1.0]
)
Ids = NDArray[np.int64]


class Pane(NamedTuple):
    """The options of one pane, by position from 1."""

    query: str
    options: list[str]
    click_shares: list[float]  # of the pane's clicks; all 0 where nobody clicked


@dataclass(frozen=True, slots=True, kw_only=True)
class RealClickEvaluation:
    """Share of pairs ordered rightly; 1/2 is chance. Intervals are 95 %, over queries."""

    num_queries: int  # with a pane that tells two options apart
    num_panes: int
    model: Interval
    without_position: Interval  # the same features, position effects left out when ranking
    rivals: dict[str, Interval]  # "position", "popularity", "overlap"
    gains: dict[str, Interval]  # model - rival, paired
    beats_all: bool  # by point estimate


def evaluate_real_clicks(
    path: Path,
    *,
    figures: Callable[[str, list[str]], NDArray[np.float32]] | None = None,
    num_folds: int = 5,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> RealClickEvaluation:
    """Cross-validates on a file of panes.

    Args:
        path: see `read_panes`.
        figures: from a query and its options to what token statistics say of them, see
            `engine.formats.token_statistics`; None: zeros.
        num_folds: parts of the queries; each is ranked by a model fitted on the others.
        num_resamples: of the intervals.
        seed: of folds and intervals.

    Raises:
        ValueError: the file cannot be read, or has fewer queries with clicks than folds.
    """
    panes = [p for p in read_panes(path) if len(set(p.click_shares)) > 1]
    queries = sorted({p.query for p in panes})
    if len(queries) < max(2, num_folds):
        raise ValueError(
            f"{path}: {len(queries)} queries have a pane where one option was clicked more than "
            f"another, too few for {num_folds} folds"
        )
    order = np.random.default_rng(seed).permutation(len(queries))
    fold_of = {queries[q]: i % num_folds for i, q in enumerate(order.tolist())}
    rightly: dict[str, dict[str, list[float]]] = {}
    for fold in range(num_folds):
        train = [p for p in panes if fold_of[p.query] != fold]
        reader = _Reader(_popularity(train), figures)
        choice = _fit(train, reader)
        for pane in panes:
            if fold_of[pane.query] == fold:
                for name, scores in choice.scores(pane, reader(pane)).items():
                    found = rightly.setdefault(name, {}).setdefault(pane.query, [])
                    found.append(_ordered_share(scores, np.array(pane.click_shares)))
    value = {
        name: np.array([float(np.mean(by_query[q])) for q in queries], np.float64)
        for name, by_query in rightly.items()
    }
    rivals = ("position", "popularity", "overlap")
    model_Q = value["model"]
    return RealClickEvaluation(
        num_queries=len(queries),
        num_panes=len(panes),
        model=mean_interval(model_Q, num_resamples, seed),
        without_position=mean_interval(value["without_position"], num_resamples, seed),
        rivals={name: mean_interval(value[name], num_resamples, seed) for name in rivals},
        gains={
            name: difference_interval(model_Q, value[name], num_resamples, seed) for name in rivals
        },
        beats_all=all(model_Q.mean() > value[name].mean() for name in rivals),
    )


def read_panes(path: Path) -> list[Pane]:
    """Reads a tab-separated file, plain or gzip, with columns query, pos, option and cctr.

    A row is an option; a pane begins where `pos` is 1. Further columns are ignored.

    Raises:
        ValueError: the file cannot be read; naming the line, if a column is missing or a value
            is unusable.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    panes: list[Pane] = []
    opened = gzip.open if path.suffix == ".gz" else open
    with reading(path), opened(path, "rt", encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: has no column {', '.join(missing)}")
        for number, row in enumerate(reader, start=2):
            try:
                position, share = int(row["pos"]), float(row["cctr"])
                query, option = normalise(row["query"]), normalise(row["option"])
            except (TypeError, ValueError):
                raise ValueError(
                    f"{path}, line {number}: a value is missing or no number"
                ) from None
            if not 0 <= share <= 1:  # also nan
                raise ValueError(f"{path}, line {number}: cctr is {share}, must be from 0 to 1")
            if position == 1:
                panes.append(Pane(query, [], []))
            if not panes or position != len(panes[-1].options) + 1:
                raise ValueError(
                    f"{path}, line {number}: pos is {position}: the options of a pane must follow "
                    "one another from 1"
                )
            panes[-1].options.append(option)
            panes[-1].click_shares.append(share)
    if not panes:
        raise ValueError(f"{path}: has no rows")
    return panes


class _Choice(NamedTuple):
    """A fitted conditional logit."""

    mean_F: Floats
    scale_F: Floats
    weight_F: Floats
    position_P: Floats  # effect of each position

    def scores(self, pane: Pane, features_CF: Floats) -> dict[str, Floats]:
        """Returns the scores of a pane's options by name of what ranks them."""
        content_C = (features_CF - self.mean_F) / self.scale_F @ self.weight_F
        places = np.arange(len(pane.options))
        last = len(self.position_P) - 1
        return {
            "model": content_C + self.position_P[np.minimum(places, last)],
            "without_position": content_C,
            "position": -places.astype(np.float64),
            "popularity": features_CF[:, 0],
            "overlap": features_CF[:, _OVERLAP],
        }


def _popularity(panes: list[Pane]) -> Counter[str]:
    """Returns how often each option was shown: nothing of the clicks, nor of the held-out fold."""
    return Counter(option for pane in panes for option in pane.options)


class _Reader:
    """Reads the features of panes; counts are those of the training folds."""

    def __init__(
        self,
        counts: Counter[str],
        figures: Callable[[str, list[str]], NDArray[np.float32]] | None,
    ) -> None:
        self._counts = counts
        self._figures = figures

    def __call__(self, pane: Pane, *, is_counted: bool = False) -> Floats:
        """Returns float64 (C, F): those of `engine.formats.features`; association is not known.

        A pane that is counted itself is read as if it were not.
        """
        own = Counter(pane.options) if is_counted else Counter()
        popularity = [float(self._counts[option] - own[option]) for option in pane.options]
        zeros = [0.0] * len(pane.options)
        figures_CT = self._figures(pane.query, pane.options) if self._figures else None
        return candidate_features(
            _PANEL, pane.query, pane.options, popularity, zeros, figures_CT
        ).astype(np.float64)


def _fit(panes: list[Pane], reader: _Reader) -> _Choice:
    """Returns the maximum a posteriori weights: each pane's clicks count as one."""
    features = [reader(pane, is_counted=True) for pane in panes]
    stacked_NF = np.concatenate(features)
    mean_F, scale_F = stacked_NF.mean(0), np.maximum(stacked_NF.std(0), 1e-6)
    width = max(len(p.options) for p in panes)
    x = torch.zeros(len(panes), width, stacked_NF.shape[1], dtype=torch.float64)
    target = torch.zeros(len(panes), width, dtype=torch.float64)
    is_option = torch.zeros(len(panes), width, dtype=torch.bool)
    for row, (pane, features_CF) in enumerate(zip(panes, features, strict=True)):
        size = len(pane.options)
        x[row, :size] = torch.from_numpy((features_CF - mean_F) / scale_F)
        shares = torch.tensor(pane.click_shares, dtype=torch.float64)
        target[row, :size] = shares / shares.sum()
        is_option[row, :size] = True
    weight = torch.zeros(x.shape[2], dtype=torch.float64, requires_grad=True)
    position = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, position], max_iter=200, line_search_fn="strong_wolfe")

    def step() -> float:
        optimizer.zero_grad()
        scores = (x @ weight + position).masked_fill(~is_option, -1e9)
        loss = -(target * scores.log_softmax(1)).sum()
        prior = 0.5 * _PRIOR_PRECISION * (weight.square().sum() + position.square().sum())
        (loss + prior).backward()
        return float((loss + prior).detach())

    optimizer.step(step)
    return _Choice(mean_F, scale_F, weight.detach().numpy(), position.detach().numpy())


def _ordered_share(score_C: Floats, share_C: Floats) -> float:
    better_CC = share_C[:, None] > share_C[None, :]
    difference_CC = np.sign(score_C[:, None] - score_C[None, :])
    return float(((difference_CC + 1) / 2)[better_CC].mean())
