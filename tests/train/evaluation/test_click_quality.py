"""The click model's evaluation: the oracle gets all, a constant nothing, bad input is refused."""

import dataclasses

import msgspec
import numpy as np
import pytest

from train.evaluation.click_quality import picked_quality, quality
from train.evaluation.click_rows import ClickRows


def made_rows(num_requests: int = 2000, num_positions: int = 5, seed: int = 0) -> ClickRows:
    """Impressions whose true click probabilities are known; the oracle serves them."""
    random = np.random.default_rng(seed)
    num_rows = num_requests * num_positions
    position_N = np.tile(np.arange(1, num_positions + 1), num_requests)
    attraction_N = random.beta(1, 4, num_rows)
    true_N = attraction_N * position_N**-0.5
    return ClickRows(
        inputs=[],
        request_N=np.repeat(np.arange(num_requests), num_positions),
        query_U=np.array([f"query {u}" for u in range(num_requests)]),
        position_N=position_N,
        source_N=np.where(random.random(num_rows) < 0.3, "generated", "log"),
        clicked_N=random.random(num_rows) < true_N,
        attraction_N=attraction_N,
        seen_N=attraction_N,
        served_N=true_N.copy(),
        true_N=true_N,
        popularity_N=np.zeros(num_rows),
        overlap_N=np.zeros(num_rows),
    )


def position_rival(rows: ClickRows) -> dict[str, np.ndarray]:
    rate = [rows.clicked_N[rows.position_N == p].mean() for p in range(1, 6)]
    return {"position": np.array(rate)[rows.position_N - 1]}


def measured(rows: ClickRows, mask: np.ndarray | None = None):
    return quality(rows, position_rival(rows), mask, num_resamples=50)


def test_oracle_has_all_of_it() -> None:
    found = measured(made_rows())
    assert tuple(found.auc_share) == tuple(found.gauc_share) == (1, 1, 1)
    assert found.true_ece.mean == 0
    assert found.bias.mean == 0
    assert found.relative_ece.mean == found.oracle_ece > 0  # the floor of sampled clicks
    assert found.normalised_entropy.mean == found.rival_entropy["oracle"]
    assert found.entropy_below_position.high < 0
    assert all(found.met.values())
    assert msgspec.json.decode(msgspec.json.encode(found))["auc_share"] == [1, 1, 1]


def test_constant_has_none_of_it() -> None:
    rows = made_rows()
    constant = dataclasses.replace(rows, served_N=np.full(len(rows.true_N), rows.true_N.mean()))
    found = measured(constant)
    assert found.auc_share.mean == found.gauc_share.mean == 0
    assert found.bias.mean == pytest.approx(0)
    assert not found.met["auc_share"]
    assert not found.met["entropy_below_position"]


def test_positions_alone_earn_no_share_within_positions() -> None:
    rows = made_rows()
    found = measured(dataclasses.replace(rows, served_N=position_rival(rows)["position"]))
    assert found.auc_share.mean > 0.3
    assert found.gauc_share.mean == 0
    assert found.entropy_below_position.mean == 0


def test_too_high_probabilities_show_as_bias_of_the_served_ones() -> None:
    rows = made_rows()
    found = measured(dataclasses.replace(rows, served_N=1.3 * rows.true_N))
    assert found.bias.mean == pytest.approx(0.3)
    assert found.true_ece.mean == pytest.approx(0.3)
    assert found.auc_share.mean == pytest.approx(1)
    assert not found.met["true_ece"]


def test_intervals_hold_the_estimate_and_shrink_with_requests() -> None:
    noisy = np.random.default_rng(1).normal(1, 0.5, 40_000).clip(0.1)
    widths = []
    for num_requests in (400, 8000):
        rows = made_rows(num_requests)
        served = np.minimum(rows.true_N * noisy[: len(rows.true_N)], 0.99)
        found = measured(dataclasses.replace(rows, served_N=served))
        assert found.auc_share.low < found.auc_share.mean < found.auc_share.high
        assert found.auc_share.mean < 1
        widths.append(found.auc_share.high - found.auc_share.low)
    assert widths[1] < widths[0] / 2


def test_requests_of_one_query_are_resampled_together() -> None:
    """The bias is that of ten queries, however often each is asked."""
    rows = made_rows(400)
    query_U = np.arange(400) % 10
    factor_Q = np.random.default_rng(2).lognormal(0, 0.4, 10)
    rows = dataclasses.replace(rows, served_N=(rows.true_N * factor_Q[query_U][rows.request_N]))
    alone = measured(rows).bias
    asked_again = dataclasses.replace(rows, query_U=query_U.astype(str))
    together = measured(asked_again).bias
    assert together.mean == alone.mean
    assert together.high - together.low > 3 * (alone.high - alone.low)
    picked = [
        picked_quality(dataclasses.replace(r, inputs=[None] * 400), num_resamples=50).bias  # pyright: ignore[reportArgumentType]
        for r in (rows, asked_again)
    ]
    assert picked[1].high - picked[1].low > 3 * (picked[0].high - picked[0].low)


def test_a_source_is_measured_on_its_own_rows() -> None:
    rows = made_rows()
    is_log = rows.source_N == "log"
    served = np.where(is_log, rows.true_N, 0.5)
    found = measured(dataclasses.replace(rows, served_N=served), is_log)
    assert found.num_impressions == is_log.sum()
    assert found.auc_share.mean == 1


@pytest.mark.parametrize("is_clicked", [True, False])
def test_clicks_that_say_nothing_are_refused(is_clicked: bool) -> None:
    rows = made_rows(50)
    rows = dataclasses.replace(rows, clicked_N=np.full(250, is_clicked))
    with pytest.raises(ValueError, match="at least 10 clicks"):
        measured(rows)


def test_probabilities_that_are_no_numbers_are_refused() -> None:
    rows = made_rows(200)
    served = rows.served_N.copy()
    served[3] = np.nan
    with pytest.raises(ValueError, match="1 served probabilities are nan"):
        measured(dataclasses.replace(rows, served_N=served))


def test_picked_items_are_judged_by_the_truth_alone() -> None:
    rows = made_rows(300)
    rows = dataclasses.replace(
        rows,
        inputs=[None] * 300,  # pyright: ignore[reportArgumentType]
        clicked_N=np.zeros(len(rows.true_N), bool),
        served_N=rows.true_N * np.where(rows.source_N == "generated", 1.5, 1.0),
    )
    found = picked_quality(rows, num_resamples=50)
    assert (found.num_queries, found.num_items) == (300, 1500)
    assert found.generated_bias.mean == pytest.approx(0.5)
    assert 0 < found.bias.mean < 0.5
    assert 0 < found.first_bias.mean < 0.5
    assert found.true_ece.mean >= found.bias.mean - 1e-9
