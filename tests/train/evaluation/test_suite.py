"""The whole evaluation: what it asks, what it leaves out and why, and what it writes."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from engine.formats.text import normalise_prefix
from export import sample
from tests.train.conftest import SimulatedRun, command
from train.config import read_config
from train.evaluation.served import ServedBundle
from train.evaluation.suite import Data, evaluate, questions_of, read_queries
from train.evaluation.traffic import read_traffic
from train.mining.mine import mine

DATA = Path(__file__).parents[3] / "examples/data"
QUERIES = [f"query number {i} of many" for i in range(40)]


def test_questions_are_the_same_queries_in_every_scenario(served: ServedBundle) -> None:
    questions = questions_of(served, QUERIES, 10, seed=3)
    by_scenario = {name: [q for s, q in questions if s == name] for name, _ in questions}
    assert by_scenario.keys() == served.bundle.scenarios.keys()
    assert by_scenario["suggestion"] == by_scenario["clarification"]
    assert set(by_scenario["suggestion"]) < set(QUERIES)
    for query, prefix in zip(by_scenario["suggestion"], by_scenario["completion"], strict=True):
        assert prefix == normalise_prefix(query[: len(prefix)])
        assert 3 <= len(prefix) <= 10
    assert questions == questions_of(served, QUERIES[::-1], 10, seed=3)
    assert questions != questions_of(served, QUERIES, 10, seed=4)


def test_queries_too_short_for_a_prefix_are_not_asked_however_many_bytes_they_have(
    served: ServedBundle,
) -> None:
    questions = questions_of(served, ["été", "äöü", "été à nice"], 3, seed=0)
    assert {q for scenario, q in questions if scenario == "suggestion"} == {"été à nice"}


@pytest.mark.parametrize("packed", [gzip.compress, bytes], ids=["gzip", "plain"])
def test_queries_are_normalised_and_distinct(
    packed: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "queries"
    path.write_bytes(packed("Red  Shoes\nred shoes\n\nblüe\n".encode()))
    assert read_queries(path) == ["blüe", "red shoes"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "cannot be read"),
        (gzip.compress(b"\n\n"), "no query"),
        (gzip.compress(b"red shoes\n" * 99)[:-12], "cannot be read"),
        (gzip.compress(b"red shoes\n")[:10] + b"\xff" * 20, "cannot be read"),
    ],
    ids=["not text", "empty", "cut", "damaged"],
)
def test_file_without_queries_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "queries.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"queries\.gz.*{message}"):
        read_queries(path)


def bundle_of(directory: Path, names: dict[str, str], patch: pytest.MonkeyPatch) -> Path:
    """Writes a bundle with random weights with some scenarios of the sample, under other names."""
    scenarios = [replace(s, name=names[s.name]) for s in sample.SCENARIOS if s.name in names]
    patch.setattr(sample, "SCENARIOS", tuple(scenarios))
    sample.write_sample_bundle(directory, mode="slots")
    return directory


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "heldout.gz").write_bytes(gzip.compress("\n".join(QUERIES).encode()))
    sessions = b'{"queries": ["wireless mouse", "wireless mouse for kids"]}\n'
    (tmp_path / "sessions.gz").write_bytes(gzip.compress(sessions))
    return Data(heldout=tmp_path / "heldout.gz", sessions=tmp_path / "sessions.gz")


NAMES = {"suggestion": "related", "completion": "autocomplete", "clarification": "refine"}


def test_scenarios_may_have_any_name(
    run: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path / "bundle", NAMES, monkeypatch)
    found = evaluate(bundle, run, data, num_threads=1, report=lambda _: None)
    assert found.left_out.keys() == {"lists", "ctr", "real"}
    assert found.completion is not None
    popular = [s for s in found.completion.scores if s.system == "most_popular"]
    assert popular[0].slice == "seen"
    assert popular[0].mrr.mean > 0.3, "it completes"
    assert found.retrieval is not None
    assert found.retrieval.scores
    assert found.sessions is not None
    assert found.sessions.num_steps == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_scenarios_that_the_simulated_truth_does_not_know_and_queries_of_the_log_are_left_out(
    simulated_run: SimulatedRun, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = NAMES | {"clarification": "clarification"}
    bundle = bundle_of(tmp_path / "bundle", names, monkeypatch)
    known = min(read_traffic(simulated_run.run).before)
    data.heldout.write_text("\n".join([*QUERIES, f"{known}!"]))
    found = evaluate(bundle, simulated_run.run, data, num_queries=99, report=lambda _: None)
    assert found.left_out["lists of some queries"] == "the log has 1 of 41"
    assert {row.num_queries for row in found.lists} == {40}
    why = "the simulated truth does not know the scenario"
    assert found.left_out["lists of related"] == found.left_out["lists of autocomplete"] == why
    assert {row.scenario for row in found.lists} == {"clarification"}


def test_what_the_bundle_or_the_log_lacks_is_left_out_with_its_reason(
    run: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path / "bundle", {"clarification": "clarification"}, monkeypatch)
    lacking = evaluate(bundle, run, data, num_threads=1, report=lambda _: None).left_out
    assert lacking["completion"] == "the bundle completes nothing"
    assert lacking["retrieval"] == lacking["sessions"]
    assert "every scenario of the bundle" in lacking["retrieval"]


def test_a_log_without_held_out_searches_is_evaluated_as_far_as_it_goes(
    run: Path, tiny_bundle: Path, data: Data, tmp_path: Path
) -> None:
    (tmp_path / "sessions.gz").write_bytes(gzip.compress(b'{"queries": ["once"]}\n'))
    whole = tmp_path / "run"
    whole.mkdir()
    text = (run / "config.toml").read_text().replace("valid_share = 0.2", "valid_share = 0")
    (whole / "config.toml").write_text(text)
    config = read_config(whole / "config.toml")
    searches = config.logs.searches
    mine(config, searches=searches, impressions="", out=whole / "mined", report=lambda _: None)
    found = evaluate(tiny_bundle, whole, data, num_threads=1, report=lambda _: None)
    assert "before and after the validation cut" in found.left_out["completion of seen"]
    assert found.completion is not None
    assert {score.slice for score in found.completion.scores} == {"other"}
    assert "after the validation cut" in found.left_out["retrieval"]
    assert found.left_out["sessions"] == "no session has two different queries in a row"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_trained_bundle_is_evaluated_by_one_command(
    simulated_run: SimulatedRun, tmp_path: Path
) -> None:
    run, bundle, out = *simulated_run, tmp_path / "eval"
    made = command(
        *("train", "evaluate", "--run", str(run), "--bundle", str(bundle), "--out", str(out)),
        *("--heldout", str(DATA / "heldout.txt.gz"), "--web", str(DATA / "heldout_web.txt.gz")),
        *("--sessions", str(DATA / "sessions.jsonl.gz"), "--queries", "20"),
    )
    assert made.returncode == 0, made.stderr
    found = json.loads((out / "eval.json").read_bytes())
    assert found["is_simulated"] is True
    assert not found["warnings"]
    few = {f"ctr of {name}" for name in ("suggestion", "completion", "clarification")}
    assert found["left_out"].pop("real") == "no real clicks are given"
    assert found["left_out"].keys() < few  # of a tiny log, some scenario may have too few clicks
    assert {score["slice"] for score in found["completion"]["scores"]} == {"seen", "web", "other"}
    systems = {score["system"] for score in found["retrieval"]["scores"]}
    assert systems == {"served", "adjacency", "bm25", "tfidf"}
    assert found["ctr"].keys() >= {"auc_share", "gauc_share", "ece_rel"}
    assert -1 < found["ctr"]["auc_share"] < 1.2
    page = (out / "eval.html").read_text()
    assert "simulated" in page
    for heading in ("What lists are worth", "Completion", "Click model", "Left out"):
        assert f"<h2>{heading}" in page
    assert page.count("<svg") >= 4
