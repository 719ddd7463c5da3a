"""Recall of the next query: slices by hand, exact search, and a whole evaluation."""

from collections import Counter

import msgspec
import numpy as np
import pytest

from train.evaluation import retrieval
from train.evaluation.traffic import Step, read_mined, read_traffic


def test_head_torso_and_tail_are_thirds_of_the_searches():
    slices = retrieval.popularity_slices({"a": 30, "b": 25, "c": 20, "d": 10, "e": 5})
    assert slices == {"a": "head", "b": "torso", "c": "torso", "d": "tail", "e": "tail"}
    assert retrieval.popularity_slices({"a": 90, "b": 10}) == {"a": "head", "b": "tail"}


def test_hits_are_counted_by_step_and_each_query_is_looked_up_once():
    asked: list[str] = []

    def retrieve(queries):
        asked.extend(queries)
        return [["x", "y"] if q == "a" else [] for q in queries]

    cases = [Step("b", "x"), Step("a", "x"), Step("a", "z"), Step("a", "x")]
    assert retrieval.found(cases, retrieve).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert asked == ["a", "b"]


def test_nearest_by_vectors_is_exact_and_never_the_query_itself():
    known = [f"q{i}" for i in range(50)]
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    class Fixed:
        def embed(self, texts):
            return vectors[[known.index(t) for t in texts]]

    lists = retrieval.nearest_by(Fixed(), known)(["q3", "q7"])
    for query, texts in zip((3, 7), lists, strict=True):
        cosines = vectors @ vectors[query]
        cosines[query] = -1
        assert texts == [known[i] for i in np.argsort(-cosines)[:20]]


def test_a_whole_evaluation(served, run):
    report = retrieval.evaluate_retrieval(served, run, num_cases=10**6, report=lambda _: None)
    mined, traffic = read_mined(run), read_traffic(run)
    steps = [s for s in traffic.steps if s.target in mined.counts]
    score = {(s.slice, s.system): s for s in report.scores}
    assert score["all", "served"].num_cases == len(steps)
    parts = {name: s.num_cases for (name, system), s in score.items() if system == "served"}
    assert parts.pop("all") == sum(parts.values())
    assert parts["cold"] == sum(s.query not in mined.counts for s in steps)

    followers = mined.log(traffic).followers
    hits = 0
    for step in steps:
        ranked = sorted(followers.get(step.query, Counter()).items(), key=lambda i: (-i[1], i[0]))
        hits += step.target in [text for text, _ in ranked[:20]]
    adjacency = score["all", "adjacency"]
    assert adjacency.recall.mean == pytest.approx(hits / len(steps))
    assert score["cold", "adjacency"].recall.mean == 0.0
    ours = score["all", "served"].recall.mean
    assert adjacency.served_less_this.mean == pytest.approx(ours - adjacency.recall.mean)
    assert tuple(score["all", "served"].served_less_this) == (0.0, 0.0, 0.0)
    assert {system for _, system in score} == {"served", "adjacency", "bm25", "tfidf"}
    assert msgspec.json.decode(msgspec.json.encode(report))["is_simulated"] is False


def test_a_directory_without_a_sentence_encoder_is_refused(served, run, tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded"):
        retrieval.evaluate_retrieval(served, run, minilm=tmp_path, report=lambda _: None)
