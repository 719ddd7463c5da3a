"""The measurement of an index at size: its recipe, its exact search, and its recall."""

import numpy as np
import pytest

from benchmarks.hnsw import parse, queries_of, search
from engine.formats.index import Edges, write_index
from engine.formats.manifest import IndexSpec
from train.retrieval.effort import exact_similarities, recall_of

NUM, DIM = 800, 16


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(NUM, DIM)).astype(np.float32)
    made[NUM // 2] = made[NUM // 3]  # two queries may have one embedding
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_the_recipe_gives_distinct_sorted_queries_and_always_the_same() -> None:
    queries = queries_of(3000)
    assert len(queries) == len(set(queries)) == 3000
    assert [q.encode() for q in queries] == sorted(q.encode() for q in queries)
    assert queries_of(3000) == queries


def test_more_queries_than_there_are_get_a_word_more() -> None:
    real, more = queries_of(220_000), queries_of(230_000)
    assert len(set(more) - set(real)) > 5000
    with pytest.raises(ValueError, match="--sizes has"):
        queries_of(10**9)


def test_exact_search_is_exact(vectors) -> None:
    found = exact_similarities(vectors, vectors[:7])
    expected = -np.sort(-(vectors[:7] @ vectors.T), axis=1)[:, :10]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_recall_is_what_was_found_of_the_nearest(vectors, tmp_path) -> None:
    lines: list[str] = []
    write_index(
        tmp_path,
        texts=[f"{i:04}" for i in range(NUM)],
        popularity=np.ones(NUM, np.float32),
        edges=Edges(np.zeros(NUM + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)),
        embeddings=vectors,
        report=lines.append,
    )
    assert lines == [f"index: {NUM} of {NUM} vectors linked"]
    spec = IndexSpec(
        num_queries=NUM, embedding_dim=DIM, m=16, ef_construction=100, ef_search=1,
        encoder_sha256="", min_users=1, counted="users",
    )  # fmt: skip
    asked = vectors[::9]
    texts = [f"{i:04}" for i in range(len(asked))]
    exact_HK = exact_similarities(vectors, asked)
    searched = search(tmp_path, spec, texts, asked, [10, NUM])
    few, all_of_them = searched.look_ups
    assert recall_of(all_of_them.rows, vectors, asked, exact_HK) == 1
    assert 0.5 < recall_of(few.rows, vectors, asked, exact_HK) < 1
    assert recall_of(all_of_them.rows, vectors, asked, exact_HK + 0.5) == 0


@pytest.mark.parametrize("argument", ["--sizes=0", "--ef=x", "--threads=0", "--m=-1"])
def test_nonsense_is_refused(argument) -> None:
    with pytest.raises(SystemExit):
        parse([argument])
