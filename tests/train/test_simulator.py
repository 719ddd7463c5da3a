"""The simulated world: what its truth must prefer, and what its tables must hold."""

import gzip
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from train import simulator
from train.simulator import clicks, policy, tables, world
from train.simulator.corpus import read_heldout
from train.simulator.truth import question_quality

DATA = Path(__file__).parents[2] / "examples" / "data"
HELDOUT = DATA / "heldout.txt.gz"


@pytest.fixture(scope="module")
def queries_path(tmp_path_factory):
    """Every third of the real queries: enough structure, a third of the time."""
    path = tmp_path_factory.mktemp("queries") / "queries.tsv"
    with gzip.open(DATA / "queries.tsv.gz", "rt", encoding="utf-8") as file:
        header, *rows = file.read().splitlines()
    path.write_text("\n".join([header, *rows[::3]]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, queries_path):
    out_dir = tmp_path_factory.mktemp("world")
    summary = run(out_dir, queries_path)
    return out_dir, summary


@pytest.fixture(scope="module")
def truth(simulated):
    return simulator.load(simulated[0])


@pytest.fixture(scope="module")
def logged(simulated):
    return sorted(set(pq.read_table(simulated[0] / "searches.parquet")["query"].to_pylist()))


@pytest.fixture(scope="module")
def impressions(simulated):
    return pq.read_table(simulated[0] / "impressions.parquet")


def run(out_dir, queries_path, **changes):
    arguments: dict[str, Any] = {
        "num_searches": 12_000,
        "num_users": 1_500,
        "num_requests": 3_000,
        "num_logged_queries": 4_000,
        "seed": 7,
    }
    return simulator.simulate(
        out_dir, queries_path=queries_path, heldout_path=HELDOUT, **(arguments | changes)
    )


def heldout_sample(num, seed=0):
    heldout = read_heldout(HELDOUT)
    chosen = np.random.default_rng(seed).choice(len(heldout), num, replace=False)
    return [heldout[i] for i in chosen]


def salad(logged, num, rng):
    words = [word for query in logged for word in query.split()]
    return [" ".join(rng.choice(words, 4)) for _ in range(num)]


def test_nonsense_reads_like_nothing_and_real_queries_read_like_queries(truth, logged):
    rng = np.random.default_rng(0)
    real = truth.wellformedness(heldout_sample(400))
    scrambled = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 9)) for _ in range(200)]
    assert np.median(real) > 0.8
    assert np.quantile(truth.wellformedness(scrambled), 0.9) < 0.1
    assert np.median(truth.wellformedness(salad(logged, 300, rng))) < 0.2
    assert truth.wellformedness([""])[0] == 0.0


def list_value(truth, *arguments, **session):
    return float(truth.click_probabilities(*arguments, **session).sum())


def test_degenerate_lists_are_worth_less_than_sensible_ones(truth, logged):
    rng = np.random.default_rng(1)
    words = [word for query in logged for word in query.split()]
    values = {"sensible": [], "copy": [], "stuffed": [], "salad": [], "popular": []}
    for query in heldout_sample(40, seed=1):
        scores = truth.attraction("suggestion", query, logged)
        sensible = [logged[i] for i in np.argsort(-scores)[:8]]
        stuffed = [f"{query} {' '.join(rng.choice(words, 4))}" for _ in range(8)]
        copies = [query, query + "s", f"{query} {query}", query.upper(), f"the {query}"] + [
            query
        ] * 3
        values["sensible"].append(list_value(truth, "suggestion", query, sensible))
        values["copy"].append(list_value(truth, "suggestion", query, copies))
        values["stuffed"].append(list_value(truth, "suggestion", query, stuffed))
        values["salad"].append(list_value(truth, "suggestion", query, salad(logged, 8, rng)))
        values["popular"].append(list_value(truth, "suggestion", query, logged[:8]))
    mean = {name: float(np.mean(value)) for name, value in values.items()}
    for name in ("copy", "stuffed", "salad", "popular"):
        assert mean[name] < mean["sensible"] / 4, mean


def test_a_copy_of_the_query_is_not_wanted_in_any_guise(truth):
    narrower = truth.attraction("suggestion", "leather wallet", ["leather wallet for women"])[0]
    guises = ["leather wallet", "Leather  Wallets", "wallet leather", "the leather wallet"]
    assert truth.attraction("suggestion", "leather wallet", guises).max() < 0.02 < narrower


def test_near_duplicates_share_attraction(truth):
    one = "wireless earbuds for running"
    probabilities = truth.click_probabilities(
        "suggestion", "earbuds", [one, "running wireless earbud"]
    )
    assert probabilities[0] > 0
    assert probabilities[1] == pytest.approx(0.0, abs=1e-12)
    repeated = list_value(truth, "suggestion", "earbuds", [one] * 5)
    assert repeated == pytest.approx(list_value(truth, "suggestion", "earbuds", [one]))


def test_a_query_already_searched_in_the_session_loses_most_of_its_attraction(truth):
    candidates = ["wireless earbuds for running"]
    fresh = truth.attraction("suggestion", "earbuds", candidates)[0]
    repeated = truth.attraction(
        "suggestion", "earbuds", candidates, session_queries=["wireless earbuds for running"]
    )[0]
    assert repeated < 0.3 * fresh


def test_completions_must_extend_the_prefix(truth):
    candidates = ["red shoes", "red", "blue shoes", "reddish", ""]
    attraction = truth.attraction("completion", "red", candidates)
    assert attraction[0] > 0
    assert attraction[1] == attraction[2] == attraction[4] == 0
    with_space = truth.attraction("completion", "red ", candidates)
    assert with_space[0] > 0
    assert with_space[3] == 0  # the space says that "red" is a whole word


def test_a_trailing_space_does_not_change_what_follows_a_whole_word(truth):
    followers = ["red shoes for women", "red dress", "red car"]
    plain = truth.attraction("completion", "red", followers)
    spaced = truth.attraction("completion", "red ", followers)
    np.testing.assert_allclose(plain, spaced)


def test_likely_words_complete_a_prefix_better_than_unlikely_ones(truth):
    attraction = truth.attraction("completion", "wireless head", ["wireless headphones",
                                                                 "wireless headstone"])  # fmt: skip
    assert attraction[0] > 2 * attraction[1]


def test_a_good_question_lifts_a_clarification_panel(truth):
    options = ["leather wallet for men", "leather wallet for women"]
    without = list_value(truth, "clarification", "leather wallet", options)
    asked = list_value(
        truth, "clarification", "leather wallet", options, auxiliary_text="who is the wallet for?"
    )
    assert asked == pytest.approx(1.25 * without)


@pytest.mark.parametrize(
    ("question", "quality"),
    [
        ("which leather wallet do you mean?", 1.0),
        ("who is it for?", 0.5),
        ("who is it for", 0.0),
        ("wallet wallet wallet?", 0.0),
        ("which?", 0.0),
        ("", 0.0),
        ("what " + "kind " * 40 + "?", 0.0),
    ],
)
def test_question_quality(question, quality):
    assert question_quality(question, "leather wallet") == quality


def test_scores_are_probabilities_and_do_not_depend_on_the_batch(truth, logged):
    queries, candidates = heldout_sample(50, seed=2), logged[:50]
    together = truth.attraction_pairs("suggestion", queries, candidates)
    apart = [truth.attraction("suggestion", q, [c])[0] for q, c in zip(queries, candidates)]  # noqa: B905
    np.testing.assert_allclose(together, apart, rtol=1e-5)
    assert together.min() >= 0
    assert together.max() <= 0.7


def test_odd_strings_get_a_score(truth):
    odd = ["", " ", "?", "\u200b", "a" * 5000, "日本語 検索", "+++", "x\ty\nz"]
    for scenario in simulator.SCENARIOS:
        for query in ["shoes", "", "?", "日本語"]:
            assert np.isfinite(truth.click_probabilities(scenario, query, odd)).all()
    assert len(truth.click_probabilities("suggestion", "shoes", [])) == 0


def test_an_unknown_scenario_is_refused_by_name(truth):
    with pytest.raises(ValueError, match="unknown scenario 'related'"):
        truth.attraction("related", "shoes", ["boots"])


def test_cascade_click_probabilities_equal_a_simulation_of_the_reader():
    attraction = np.tile([0.3, 0.1, 0.4, 0.2], (200_000, 1))
    expected = clicks.click_probabilities(attraction[:1], "suggestion", "cascade")[0]
    drawn = clicks.draw(attraction, "suggestion", "cascade", np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=0.005)


def test_logged_propensities_are_the_frequencies_of_the_exploration():
    rng = np.random.default_rng(0)
    num, rate = 4, 0.4
    counts = np.zeros((num, num))
    stated = {}
    for _ in range(40_000):
        order, propensities = policy.explored(num, rate, rng)
        for position, (item, propensity) in enumerate(zip(order, propensities, strict=True)):
            counts[item, position] += 1
            stated[item, position] = propensity
    for (item, position), propensity in stated.items():
        assert counts[item, position] / 40_000 == pytest.approx(propensity, abs=0.01)


def test_tables_have_the_columns_of_the_contract(simulated, impressions):
    searches = pq.read_table(simulated[0] / "searches.parquet")
    assert searches.schema.equals(tables.SEARCHES)
    assert impressions.schema.equals(tables.IMPRESSIONS)
    assert impressions.schema.metadata[b"queryrec.simulated"] == b"true"
    positions = impressions.group_by("request_id").aggregate(
        [("position", "max"), ("position", "count")]
    )
    assert positions["position_max"].to_pylist() == positions["position_count"].to_pylist()


def test_heldout_queries_occur_nowhere_in_the_log(simulated, impressions, logged):
    heldout = set(read_heldout(HELDOUT))
    assert not heldout & set(logged)
    assert not heldout & set(impressions["text"].to_pylist())
    assert not heldout & set(impressions["query"].to_pylist())
    side = impressions["side_information"].combine_chunks().flatten().field("text").to_pylist()
    assert not heldout & set(side)


def test_completion_panels_hold_extensions_and_hidden_items_are_never_clicked(impressions):
    rows = impressions.select(["scenario", "query", "text", "shown", "clicked"]).to_pylist()
    assert {row["scenario"] for row in rows} == set(simulator.SCENARIOS)
    for row in rows:
        if row["scenario"] == "completion":
            assert row["text"].startswith(row["query"])
            assert len(row["text"]) > len(row["query"])
        assert row["shown"] or not row["clicked"]


def test_clicks_follow_the_truth(truth, impressions):
    """The clicks of a scenario's panels add up to their expectation, within four deviations."""
    panels = {}
    for row in impressions.to_pylist():
        if row["shown"]:
            panels.setdefault(row["request_id"], []).append(row)
    for scenario in simulator.SCENARIOS:
        chosen = [rows for rows in panels.values() if rows[0]["scenario"] == scenario]
        expected = np.concatenate(
            truth.list_click_probabilities(
                scenario,
                [rows[0]["query"] for rows in chosen],
                [[row["text"] for row in rows] for rows in chosen],
                sessions=[[s["text"] for s in rows[0]["side_information"]] for rows in chosen],
                questions=[rows[0]["auxiliary_text"] or "" for rows in chosen],
            )
        )
        num_clicks = sum(row["clicked"] for rows in chosen for row in rows)
        deviation = np.sqrt((expected * (1 - expected)).sum())
        assert abs(num_clicks - expected.sum()) < 4 * deviation


def test_sessions_are_sometimes_cut_by_inactivity_only(simulated):
    sessions = {}
    columns = ["session_id", "time", "user_key"]
    for row in pq.read_table(simulated[0] / "searches.parquet", columns=columns).to_pylist():
        sessions.setdefault(row["session_id"], []).append((row["time"], row["user_key"]))
    times = [sorted(t for t, _ in rows) for rows in sessions.values()]
    gaps = np.array([(b - a).total_seconds() for t in times for a, b in pairwise(t)])
    assert (gaps > 1800).any()
    assert (gaps < 1200).mean() > 0.8
    assert all(len({user for _, user in rows}) == 1 for rows in sessions.values())


def test_the_same_seed_gives_the_same_log_and_another_seed_another(tmp_path, queries_path):
    header, *rows = queries_path.read_text(encoding="utf-8").splitlines()
    path = tmp_path / "fewer.tsv"
    path.write_text("\n".join([header, *rows[::4]]) + "\n", encoding="utf-8")
    small = {"num_searches": 500, "num_requests": 60, "num_logged_queries": 900}
    first = run(tmp_path / "a", path, **small)
    second = run(tmp_path / "b", path, **small)
    assert first == second
    assert pq.read_table(tmp_path / "a/impressions.parquet").equals(
        pq.read_table(tmp_path / "b/impressions.parquet")
    )
    other = run(tmp_path / "c", path, **small, seed=8, click_model="cascade")
    assert other.fingerprint != first.fingerprint
    assert simulator.load(tmp_path / "c").click_model == "cascade"


def test_a_world_that_changed_since_it_was_frozen_is_refused(tmp_path, simulated):
    for name in (world.JSON_NAME, world.ARRAYS_NAME, world.TEXT_NAME):
        shutil.copy(simulated[0] / name, tmp_path / name)
    record = json.loads((tmp_path / "world.json").read_text())
    (tmp_path / "world.json").write_text(json.dumps(record | {"seed": 8}))
    with pytest.raises(ValueError, match="fingerprint"):
        simulator.load(tmp_path)
    (tmp_path / "world.json").write_text(
        json.dumps(record | {"probe": [0.0] * len(record["probe"])})
    )
    with pytest.raises(ValueError, match="formulas changed"):
        simulator.load(tmp_path)
    (tmp_path / "world.npz").unlink()
    with pytest.raises(ValueError, match=r"lacks world\.npz"):
        simulator.load(tmp_path)


def test_a_directory_that_is_not_empty_is_refused_unless_allowed(tmp_path, queries_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(ValueError, match="not empty"):
        run(tmp_path, queries_path)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        run(tmp_path, queries_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_searches": 0}, "num_searches is 0"),
        ({"exploration_rate": 1.5}, "exploration_rate is 1.5"),
        ({"click_model": "dbn"}, "unknown click_model 'dbn'"),
        ({"num_logged_queries": 10**7}, "num_logged is 10000000"),
    ],
)
def test_impossible_arguments_are_refused_with_the_value(tmp_path, queries_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", queries_path, **change)
    assert not (tmp_path / "out").exists()


def test_a_query_file_without_its_columns_is_refused(tmp_path):
    path = tmp_path / "queries.tsv"
    path.write_text("text\tcount\nshoes\t3\n")
    with pytest.raises(ValueError, match="lacks column\\(s\\) query, slice"):
        run(tmp_path / "out", path)
    with pytest.raises(ValueError, match="no such file"):
        run(tmp_path / "out", tmp_path / "absent.tsv")
