"""The whole evaluation: what it asks, what it leaves out and why, and what it writes."""

import gzip
import json
from pathlib import Path

import pytest

from engine.formats.text import normalise_prefix
from tests.train.conftest import SimulatedRun, command
from train.evaluation.served import ServedBundle
from train.evaluation.suite import questions_of, read_queries

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


def test_queries_are_normalised_and_distinct(tmp_path: Path) -> None:
    path = tmp_path / "queries.gz"
    with gzip.open(path, "wt") as stream:
        stream.write("Red  Shoes\nred shoes\n\nblue\n")
    assert read_queries(path) == ["blue", "red shoes"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"plain text\n", "gzip"), (gzip.compress(b"\n\n"), "no query")]
)
def test_file_without_queries_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "queries.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"queries\.gz.*{message}"):
        read_queries(path)


@pytest.mark.slow
@pytest.mark.timeout(600)
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


@pytest.mark.parametrize("missing", ["run", "bundle", "heldout"])
def test_what_is_missing_is_named(missing: str, tiny_bundle: Path, tmp_path: Path) -> None:
    places = {
        "run": tmp_path / "run", "bundle": tiny_bundle, "heldout": DATA / "heldout.txt.gz",
    }  # fmt: skip
    places[missing] = tmp_path / "nowhere"
    found = command(
        *("train", "evaluate", "--out", str(tmp_path / "eval")),
        *(text for name, path in places.items() for text in (f"--{name}", str(path))),
    )
    assert found.returncode == 2, found.stderr
    assert ("run" if missing == "run" else "nowhere") in found.stderr
    assert not (tmp_path / "eval").exists()
