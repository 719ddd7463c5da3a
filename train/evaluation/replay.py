"""What a log says of a bundle's lists, where no truth is known.

The bundle answers requests of the log that it was not trained on, and its lists are compared with
what was shown then, in three ways that err differently:

* **exact**: places where both have the same text. Clicks there, weighted by 1 / propensity and
  divided by the sum of the weights (SNIPS: Swaminathan and Joachims, NeurIPS 2015; by item and
  position: Li et al., KDD 2018), over the log's click rate at the same places of the other requests
  with the same query, weighted alike. Which requests agree is no accident: head queries do more
  often, and are clicked more; so each query is its own yardstick, and queries that were asked once
  do not count.
* **order**: texts that both have, wherever. A click at one place is worth p(seen there) / p(seen
  here) at another, as in a position-based click model: is the bundle's order of them better? It
  assumes that a text is clicked alike whatever stands above it. Where lists hold texts that say
  nearly the same, as completions do, what a click model takes for less attention further down is
  in part that they repeat what stands above; then a text moved up counts for too much.
  **at_least** holds that against all clicks of the log: texts that the log never showed count as
  never clicked. It assumes the same, so it is no bound of what the list is worth.
* **judge**: all texts of both, by a click model that was trained on other data than the bundle. It
  judges each text by itself, too.

Intervals are over queries, whose requests are resampled together.

A list counts as far as its panel went, and but for places whose text the log has lost: nothing is
known of what was there. A bundle's index counts the searches of the whole log, so its popularities
know a little of the time that is replayed. Knows nothing of how lists are made.
"""

# U requests, P places of one
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.answering.candidates import key_of
from engine.formats.prompt import SideInformation
from train.clicks.calibration import seen_at
from train.evaluation.intervals import Interval, statistic_interval

Floats = NDArray[np.floating]


class Shown(NamedTuple):
    """A panel of the log, its texts by position from the first; those that fell below k are ""."""

    scenario: str
    query: str
    side_information: tuple[SideInformation, ...]
    texts: list[str]
    clicked: list[bool]
    propensity: list[float]


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """How a bundle compares with the log in one scenario; ratios are bundle over log.

    Attributes:
        num_requests: replayed.
        num_clicks: on what was shown then.
        coverage: share of the bundle's texts, in places that are compared, that the same request's
            panel had.
        num_exact: places with the same text.
        effective_exact: how many equally weighted places would know as much as those of them that
            are compared, (sum w)^2 / sum w^2.
        exact: see above; None without a place that says something.
        order: see above; None without a click on a text that both have.
        at_least: see above, and no bound in spite of its name; None without clicks.
        judge: see above; None without a judge.
        judged_over_clicked: clicks that the judge expected of the log's panels over those that
            came: what its word is worth.
    """

    num_requests: int
    num_clicks: int
    coverage: float
    num_exact: int
    effective_exact: float
    exact: Interval | None
    order: Interval | None
    at_least: Interval | None
    judge: Interval | None = None
    judged_over_clicked: float | None = None


def read_panels(run: Path, *, num: int, seed: int) -> dict[str, list[Shown]]:
    """Returns panels of the log by scenario that were held out of training, drawn at random.

    Args:
        run: run directory, mined.
        num: of each scenario at most.
        seed: of the draw.

    Raises:
        ValueError: the run has no impressions that were held out.
    """
    path = run / "mined/impressions.parquet"
    if not path.is_file():
        raise ValueError(f"{run}: has no impressions, so there is nothing to replay")
    is_valid = pc.field("split") == "valid"
    ids = pq.read_table(path, columns=["scenario", "request_id"], filters=is_valid)
    if not ids.num_rows:
        raise ValueError(f"{run}: no impressions were held out; see mine.valid_share")
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[Shown]] = {}
    for scenario in sorted(ids["scenario"].unique().to_pylist()):
        own = ids.filter(pc.field("scenario") == scenario)["request_id"].unique().sort()
        chosen = rng.choice(len(own), min(num, len(own)), replace=False)
        is_drawn = (pc.field("scenario") == scenario) & pc.field("request_id").isin(
            own.take(chosen)
        )
        table = pq.read_table(path, filters=is_valid & is_drawn)
        shown = table.sort_by([("request_id", "ascending"), ("position", "ascending")]).to_pylist()
        drawn[scenario] = [
            _panel(list(rows)) for _, rows in groupby(shown, itemgetter("request_id"))
        ]
    return drawn


def compare(
    panels: Sequence[Shown],
    lists: Sequence[Sequence[str]],
    seen_P: Sequence[float],
    judged: Sequence[tuple[Floats, Floats]] | None = None,
) -> Replayed:
    """Returns how lists compare with the panels that were shown to the same requests.

    Args:
        panels: of one scenario.
        lists: for the same requests, best text first; may be longer than the panel was.
        seen_P: p(seen) by position; beyond its end the last value. Empty: 1 everywhere.
        judged: p(click | seen) of the texts of each panel and of each list.
    """
    num = len(panels)
    clicks_U, moved_U, kept_U = np.zeros(num), np.zeros(num), np.zeros(num)
    size = max((len(p.texts) for p in panels), default=0)
    shown_UP, clicked_UP, weight_UP = (np.zeros((num, size)) for _ in range(3))
    then_U, now_U = np.zeros(num), np.zeros(num)
    for u, (then_P, now_P) in enumerate(judged or ()):
        then_U[u], now_U[u] = (_expected(panels[u], p, seen_P) for p in (then_P, now_P))
    num_texts = num_covered = 0
    for u, (panel, texts) in enumerate(zip(panels, lists, strict=True)):
        clicks_U[u] = sum(panel.clicked)
        clicked_UP[u, : len(panel.clicked)] = panel.clicked
        shown_UP[u, : len(panel.texts)] = [text != "" for text in panel.texts]
        place_of = {key_of(text): place for place, text in enumerate(panel.texts) if text}
        for place, (text, shown) in enumerate(zip(texts, panel.texts, strict=False)):
            if not shown:
                continue
            num_texts += 1
            then = place_of.get(key_of(text))
            if then is None:
                continue
            num_covered += 1
            clicked = panel.clicked[then]
            kept_U[u] += clicked
            if clicked:
                here, there = seen_at(seen_P, np.array([place, then])).tolist()
                moved_U[u] += here / there
            if then == place:
                weight_UP[u, place] = 1 / panel.propensity[then]
    num_exact = int((weight_UP > 0).sum())
    _, query_U = np.unique([panel.query for panel in panels], return_inverse=True)
    weight_UP[_by_query(shown_UP, query_U) == shown_UP] = 0  # there is no other request
    return Replayed(
        num_requests=num,
        num_clicks=int(clicks_U.sum()),
        coverage=num_covered / max(1, num_texts),
        num_exact=num_exact,
        effective_exact=float(weight_UP.sum() ** 2 / max((weight_UP**2).sum(), 1e-12)),
        exact=_exact(shown_UP, clicked_UP, weight_UP, query_U),
        order=_ratio(moved_U, kept_U, query_U) if kept_U.any() else None,
        at_least=_ratio(moved_U, clicks_U, query_U) if clicks_U.any() else None,
        judge=_ratio(now_U, then_U, query_U) if judged is not None else None,
        judged_over_clicked=(
            float(then_U.sum() / clicks_U.sum()) if judged is not None and clicks_U.any() else None
        ),
    )


def _exact(
    shown_UP: Floats, clicked_UP: Floats, weight_UP: Floats, query_U: NDArray[np.int64]
) -> Interval | None:
    """Returns SNIPS over the click rate of other requests at the same places, weighted alike.

    Whole queries are resampled: requests of one are compared with one another, so what happened
    once counts for several, and a request that is drawn twice would be compared with itself.
    """
    others_UP = _by_query(shown_UP, query_U) - shown_UP
    rate_UP = np.divide(
        _by_query(clicked_UP, query_U) - clicked_UP,
        others_UP,
        where=others_UP > 0,
        out=np.zeros_like(shown_UP),
    )
    usual_U, hits_U = (weight_UP * rate_UP).sum(1), (weight_UP * clicked_UP).sum(1)
    is_compared_U = weight_UP.any(1)
    if not usual_U.any():
        return None
    return _ratio(hits_U[is_compared_U], usual_U[is_compared_U], query_U[is_compared_U])


def _ratio(value_U: Floats, rival_U: Floats, query_U: NDArray[np.int64]) -> Interval:
    """Returns the ratio of sums, paired; requests of one query are resampled together.

    Resamples without anything to divide by are left out.
    """

    def ratio(times_U: Floats) -> float:
        divisor = float(times_U @ rival_U)
        return float(times_U @ value_U) / divisor if divisor else float("nan")

    return statistic_interval(ratio, len(value_U), cluster_U=query_U.tolist())


def _by_query(values_UP: Floats, query_U: NDArray[np.int64]) -> Floats:
    """Returns the sum over all requests of each request's query, (U, P)."""
    num_places = values_UP.shape[1]
    place_UP = query_U[:, None] * num_places + np.arange(num_places)
    sums = np.bincount(place_UP.ravel(), values_UP.ravel()).astype(np.float64)
    return sums[place_UP]


def _expected(panel: Shown, p_seen_P: Floats, seen_P: Sequence[float]) -> float:
    """Returns the clicks on the panel, or on a list in its place, where both are compared."""
    num = min(len(p_seen_P), len(panel.texts))
    is_shown_P = np.array([text != "" for text in panel.texts[:num]], np.bool_)
    return float((p_seen_P[:num] * seen_at(seen_P, np.arange(num)))[is_shown_P].sum())


def _panel(rows: Sequence[Mapping]) -> Shown:
    """Returns the rows of a request as a panel; positions that the table lacks hold no text."""
    first, size = rows[0], max(row["position"] for row in rows)
    texts, clicked, propensity = [""] * size, [False] * size, [1.0] * size
    for row in rows:
        place = row["position"] - 1
        texts[place], clicked[place] = row["text"], row["clicked"]
        propensity[place] = row.get("propensity") or 1.0
    side = tuple(
        SideInformation(item["kind"], item["text"]) for item in first["side_information"] or []
    )
    return Shown(first["scenario"], first["query"], side, texts, clicked, propensity)
