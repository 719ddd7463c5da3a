"""Replay against a world whose clicks are known: position-based, logged with random swaps."""

import random
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.answering.ranking import explored
from engine.formats.prompt import SideInformation
from train.evaluation.intervals import Interval, statistic_interval
from train.evaluation.replay import Shown, compare, read_panels
from train.report.own_log import replay

SEEN = [1.0, 0.6, 0.4, 0.3]
SIDE_TYPE = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
TEXTS = ["a", "b", "c", "d"]


def attraction(query: int, text: str) -> float:
    """Each query likes another text most."""
    return 0.1 + 0.5 * ((TEXTS.index(text) + query) % 4 == 0)


def logged(num: int, rate: float = 1.0, seed: int = 0) -> list[Shown]:
    """Returns panels whose order knows nothing of the query, with clicks drawn by the truth."""
    rng, randomness = np.random.default_rng(seed), random.Random(seed)
    panels = []
    for u in range(num):
        places, propensity = explored(4, rate, randomness)
        texts = [TEXTS[p] for p in places]
        p_click = [SEEN[j] * attraction(u % 4, t) for j, t in enumerate(texts)]
        clicked = (rng.random(4) < p_click).tolist()
        panels.append(Shown("suggestion", str(u % 4), (), texts, clicked, propensity))
    return panels


def best_first(panels: list[Shown]) -> list[list[str]]:
    return [sorted(TEXTS, key=lambda t: -attraction(int(p.query), t)) for p in panels]


def true_clicks(query: int, texts: list[str]) -> float:
    return sum(SEEN[k] * attraction(query, t) for k, t in enumerate(texts))


def known(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def test_the_ratio_of_a_better_order_is_that_of_the_truth():
    panels = logged(20_000)
    lists = best_first(panels)
    replayed = compare(panels, lists, SEEN)
    then = sum(true_clicks(int(p.query), p.texts) for p in panels)
    now = sum(true_clicks(int(p.query), texts) for p, texts in zip(panels, lists, strict=True))
    assert replayed.coverage == 1
    assert known(replayed.order).low <= now / then <= known(replayed.order).high
    assert known(replayed.order).mean == pytest.approx(now / then, rel=0.05)
    assert replayed.at_least == replayed.order, "all texts are known"


def test_places_with_the_same_text_tell_what_they_are_worth():
    panels = logged(40_000, seed=2)
    lists = best_first(panels)
    replayed = compare(panels, lists, SEEN)
    # Weighted by 1 / propensity, every place that logging could have filled alike counts once.
    reachable = [
        (query, k, attraction(query, text))
        for query in range(4)
        for k, text in enumerate(best_first([panels[query]])[0])
        if abs(TEXTS.index(text) - k) <= 1
    ]
    places_J = np.arange(4)
    stands_JJ = 0.25 * (np.abs(places_J[:, None] - places_J) == 1)  # a neighbour is there
    stands_JJ += np.diag(1 - stands_JJ.sum(1))
    usual = [SEEN * (stands_JJ @ [attraction(query, t) for t in TEXTS]) for query in range(4)]
    ratio = sum(SEEN[k] * a for _, k, a in reachable) / sum(usual[q][k] for q, k, _ in reachable)
    assert known(replayed.exact).low <= ratio <= known(replayed.exact).high
    assert known(replayed.exact).mean == pytest.approx(ratio, rel=0.05)
    assert 0 < replayed.effective_exact <= replayed.num_exact


def test_the_lists_of_the_log_itself_are_worth_what_they_were():
    panels = logged(500)
    replayed = compare(panels, [p.texts for p in panels], SEEN)
    assert (known(replayed.order).low, known(replayed.order).high) == (1, 1)
    assert known(replayed.at_least).mean == 1
    assert replayed.num_exact == 2000
    assert known(replayed.exact).low <= 1 <= known(replayed.exact).high


def test_a_bundle_that_repeats_the_log_on_what_is_clicked_most_is_worth_what_the_log_is():
    """It agrees with the log of head queries, of others at the first place or not at all."""
    rng, panels, lists = np.random.default_rng(0), [], []
    for u in range(4000):
        kind, query = ("head", "torso", "tail")[u % 3], f"query {u % 60}"
        texts = [f"{query} {k}" for k in range(4)]
        clicked = (rng.random(4) < {"head": 0.4, "torso": 0.2, "tail": 0.1}[kind]).tolist()
        panels.append(Shown("suggestion", query, (), texts, clicked, [1.0] * 4))
        num_agreed = {"head": 4, "torso": 1, "tail": 0}[kind]
        lists.append([*texts[:num_agreed], "a", "b", "c", "d"][:4])
    replayed = compare(panels, lists, ())
    assert replayed.coverage < 0.5
    assert known(replayed.exact).mean == pytest.approx(1)
    assert known(replayed.exact).low <= 1 <= known(replayed.exact).high
    assert known(replayed.exact).high - known(replayed.exact).low < 0.01


def test_requests_of_one_query_say_no_more_than_that_query() -> None:
    """Thrice the same, nothing is known more surely."""
    once = [p._replace(query=str(u)) for u, p in enumerate(logged(200))]
    found = []
    for panels in (once, once * 3):
        lists = [sorted(p.texts, key=lambda t: -attraction(int(p.query), t)) for p in panels]
        judged = [(np.full(4, 0.2), np.full(4, 0.2 + 0.1 * (int(p.query) % 3))) for p in panels]
        found.append(compare(panels, lists, SEEN, judged))
    alone, together = found
    for name in ("order", "at_least", "judge"):
        assert known(getattr(together, name)) == pytest.approx(known(getattr(alone, name)))
        assert known(getattr(alone, name)).low < known(getattr(alone, name)).high


def test_the_interval_of_places_with_the_same_text_is_over_whole_queries():
    """Each query's requests are compared with one another before queries are resampled."""
    rng = np.random.default_rng(0)
    panels, hits_Q, usual_Q = [], np.zeros(60), np.zeros(60)
    for q in range(60):
        is_own_U = np.array([True, *(rng.random(3) < 0.5)])
        clicked_U = rng.random(4) < np.where(is_own_U, 0.4, 0.1)
        hits_Q[q] = clicked_U[is_own_U].sum()
        usual_Q[q] = sum((clicked_U.sum() - clicked_U[u]) / 3 for u in np.flatnonzero(is_own_U))
        panels += [
            Shown("s", str(q), (), ["a" if is_own else "b"], [clicked], [1.0])
            for is_own, clicked in zip(is_own_U.tolist(), clicked_U.tolist(), strict=True)
        ]
    found = known(compare(panels, [["a"]] * len(panels), SEEN).exact)
    expected = statistic_interval(lambda times_Q: float(times_Q @ hits_Q / (times_Q @ usual_Q)), 60)
    assert found == pytest.approx(expected)


def test_what_was_asked_once_has_nothing_to_be_compared_with():
    panels = [p._replace(query=str(u)) for u, p in enumerate(logged(100))]
    replayed = compare(panels, [p.texts for p in panels], SEEN)
    assert (replayed.num_exact, replayed.effective_exact, replayed.exact) == (400, 0, None)


def test_texts_that_were_never_shown_count_as_never_clicked_in_at_least_alone():
    panels = logged(2_000)
    new = [[p.texts[0], "new"] for p in panels]
    replayed = compare(panels, new, SEEN)
    assert replayed.coverage == 0.5
    assert known(replayed.order).mean == 1
    first = sum(p.clicked[0] for p in panels)
    assert known(replayed.at_least).mean == pytest.approx(first / replayed.num_clicks)


def test_a_text_in_other_letters_is_the_same_text():
    panel = Shown("suggestion", "q", (), ["Red Shoes!"], [True], [1.0])
    assert compare([panel], [["red shoes"]], SEEN).num_exact == 1


def test_places_whose_text_was_lost_count_on_neither_side():
    panels = [p._replace(propensity=[1.0] * 4) for p in logged(2_000)]
    lost = [
        p._replace(texts=["", *p.texts[1:]], clicked=[False, *p.clicked[1:]]) if u % 2 else p
        for u, p in enumerate(panels)
    ]
    lists = [p.texts for p in panels]
    ones = [(np.array([float(t != "") for t in p.texts]), np.ones(4)) for p in lost]
    replayed = compare(lost, lists, SEEN, ones)
    assert replayed.num_exact == 7_000
    assert replayed.coverage == 1
    assert known(replayed.exact).mean == pytest.approx(1), "the log's own lists"
    assert replayed.order == replayed.at_least == (1, 1, 1)
    assert replayed.judge == (1, 1, 1)


def test_a_clicked_text_in_a_place_that_is_not_known_is_no_click_of_the_list():
    panel = Shown("suggestion", "q", (), ["", "b"], [False, True], [1.0, 1.0])
    replayed = compare([panel], [["b", "a"]], SEEN)
    assert (replayed.order, known(replayed.at_least).mean) == (None, 0)


def test_lists_count_as_far_as_the_panel_went():
    panels = [p._replace(texts=p.texts[:2], clicked=p.clicked[:2]) for p in logged(2_000)]
    lists = [[*p.texts, "new", "newer"] for p in panels]
    replayed = compare(panels, lists, SEEN, [(np.ones(2), np.ones(4)) for _ in panels])
    assert replayed.judge == (1, 1, 1)
    assert replayed.coverage == 1


def test_without_clicks_nothing_is_claimed():
    panels = [p._replace(clicked=[False] * 4) for p in logged(50)]
    replayed = compare(panels, best_first(panels), SEEN)
    assert (replayed.exact, replayed.order, replayed.at_least) == (None, None, None)


def test_a_judge_is_weighed_by_how_positions_are_seen_and_told_apart_from_what_it_is_worth():
    panels = logged(2_000)
    lists = best_first(panels)

    def judged(panel: Shown, texts: list[str]) -> np.ndarray:
        return np.array([attraction(int(panel.query), t) for t in texts])

    pairs = [(judged(p, p.texts), judged(p, t)) for p, t in zip(panels, lists, strict=True)]
    replayed = compare(panels, lists, SEEN, pairs)
    then = sum(true_clicks(int(p.query), p.texts) for p in panels)
    now = sum(true_clicks(int(p.query), t) for p, t in zip(panels, lists, strict=True))
    assert known(replayed.judge).mean == pytest.approx(now / then)
    assert replayed.judged_over_clicked == pytest.approx(1, rel=0.05)


def test_panels_that_were_held_out_are_read_by_scenario_with_gaps_where_texts_are_missing(tmp_path):
    row = {"query": "q", "source": "log", "auxiliary_text": "", "side_information": []}
    rows = [
        row | {"request_id": "r1", "scenario": "suggestion", "position": 3, "text": "c"},
        row | {"request_id": "r1", "scenario": "suggestion", "position": 1, "text": "a"},
        row | {"request_id": "r2", "scenario": "completion", "position": 1, "text": "b"},
        row | {"request_id": "r3", "scenario": "suggestion", "position": 1, "text": "x"},
    ]
    for place, r in enumerate(rows):
        r |= {"clicked": place == 0, "propensity": 0.25, "split": "valid"}
    rows[3]["split"] = "train"
    rows[1]["side_information"] = [{"kind": "session", "text": "before"}]
    (tmp_path / "mined").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mined/impressions.parquet")
    panels = read_panels(tmp_path, num=10, seed=0)
    assert list(panels) == ["completion", "suggestion"]
    (panel,) = panels["suggestion"]
    assert panel.texts == ["a", "", "c"]
    assert panel.clicked == [False, False, True]
    assert panel.propensity == [0.25, 1.0, 0.25]
    assert panel.side_information == (SideInformation("session", "before"),)


def test_few_panels_are_drawn_of_a_large_log_without_making_objects_of_the_rest(tmp_path):
    num = 20_000
    ids = [f"r{i:05}" for i in range(num) for _ in range(3)]
    table = pa.table(
        {
            "request_id": ids,
            "scenario": [
                "completion" if i % 2 else "suggestion" for i in range(num) for _ in "abc"
            ],
            "query": ids,
            "position": [1, 2, 3] * num,
            "text": ["a", "b", "c"] * num,
            "clicked": [False, True, False] * num,
            "propensity": [0.5] * (3 * num),
            "split": ["train" if i < num // 2 else "valid" for i in range(num) for _ in "abc"],
        }
    )
    table = table.append_column("side_information", pa.array([[]] * len(ids)).cast(SIDE_TYPE))
    (tmp_path / "mined").mkdir()
    path = tmp_path / "mined/impressions.parquet"
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(ids))), path)
    tracemalloc.start()
    panels = read_panels(tmp_path, num=20, seed=0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**21, "bytes in Python's objects; those of all panels are twenty times as many"
    assert {name: len(drawn) for name, drawn in panels.items()} == {
        "completion": 20,
        "suggestion": 20,
    }
    for name, drawn in panels.items():
        numbers = [int(panel.query[1:]) for panel in drawn]
        assert numbers == sorted(set(numbers))
        assert min(numbers) >= num // 2
        assert {i % 2 for i in numbers} == {name == "completion"}
        assert all(panel.texts == ["a", "b", "c"] for panel in drawn)
    assert read_panels(tmp_path, num=20, seed=0) == panels
    assert read_panels(tmp_path, num=20, seed=1) != panels


def test_a_run_without_impressions_says_so(tmp_path):
    with pytest.raises(ValueError, match="has no impressions"):
        read_panels(tmp_path, num=10, seed=0)


def test_a_judge_that_taught_the_bundle_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is the run itself"):
        replay(tmp_path, tmp_path, judge=tmp_path, num_requests=10, seed=0)


def test_a_bundle_of_another_run_is_told_first(trained_run, tiny_bundle):
    found = replay(
        trained_run, tiny_bundle, judge=None, num_requests=10, seed=0, report=lambda _: None
    )
    (warning,) = found.warnings
    assert "was not exported from" in warning
    assert found.describe()[0] == f"warning: {warning}"
    assert found.scenarios["suggestion"].num_requests == 10
