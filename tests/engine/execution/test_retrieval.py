"""Retrieval against brute force over the same small index."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.execution.retrieval import Retrieval
from engine.formats.index import CooccurrenceIndex, Edges, write_index
from engine.formats.manifest import IndexSpec

DIM, NUM = 16, 300


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(1)
    words = ["red", "blue", "shoe", "sock", "hat", "größe", "靴"]
    made = {" ".join(rng.choice(words, rng.integers(1, 4))) + f" {i}" for i in range(NUM)}
    return sorted(made, key=lambda t: t.encode())


@pytest.fixture(scope="module")
def parts(texts):
    rng = np.random.default_rng(2)
    embeddings = rng.normal(size=(len(texts), DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    popularity = rng.permutation(len(texts)).astype(np.float32) + 1
    neighbours: list[dict[int, float]] = []
    for row in range(len(texts)):
        others = [int(r) for r in rng.choice(len(texts), rng.integers(0, 20), replace=False)]
        npmi = np.sort(rng.random(len(others)).astype(np.float32))[::-1]
        neighbours.append({r: float(n) for r, n in zip(others, npmi, strict=True) if r != row})
    return embeddings, popularity, neighbours


@pytest.fixture(scope="module")
def place(texts, parts, tmp_path_factory) -> tuple[Path, IndexSpec]:
    embeddings, popularity, neighbours = parts
    directory = tmp_path_factory.mktemp("index")
    write_index(
        directory,
        texts=texts,
        popularity=popularity,
        edges=Edges(
            np.cumsum([0, *(len(n) for n in neighbours)]),
            np.array([r for n in neighbours for r in n], np.int32),
            np.array([v for n in neighbours for v in n.values()], np.float32),
        ),
        embeddings=embeddings,
    )
    spec = IndexSpec(
        num_queries=len(texts),
        embedding_dim=DIM,
        m=16,
        ef_construction=100,
        ef_search=300,
        encoder_sha256="",
        min_users=1,
        counted="users",
    )
    return directory, spec


@pytest.fixture(scope="module")
def index(place) -> CooccurrenceIndex:
    return CooccurrenceIndex(*place)


@pytest.fixture(scope="module")
def retrieval(index) -> Retrieval:
    return Retrieval(index, max_candidates=24, max_cooccurring=5, num_nearest=8)


def row_where(neighbours: list[dict[int, float]], has: Callable[[int], bool]) -> int:
    return next(r for r, n in enumerate(neighbours) if has(len(n)))


def test_a_well_known_query_is_answered_from_its_own_lists(retrieval, texts, parts):
    _, popularity, neighbours = parts
    row = row_where(neighbours, lambda n: n >= 12)
    found = retrieval.exact(texts[row])
    assert found.texts == [texts[r] for r in neighbours[row]]
    assert found.npmi == pytest.approx(list(neighbours[row].values()))
    assert found.popularity == [popularity[r] for r in neighbours[row]]
    assert found.cooccurring == found.texts[:5]


def test_a_query_with_short_lists_or_none_needs_the_encoder(retrieval, texts, parts):
    row = row_where(parts[2], lambda n: n < 12)
    assert retrieval.exact(texts[row]) is None
    assert retrieval.exact("never searched") is None


def brute_force(
    embeddings: NDArray[np.float32], neighbours: list[dict[int, float]], query: NDArray[np.float32]
) -> dict[int, float]:
    similarity = embeddings.astype(np.float16).astype(np.float32) @ query  # as the graph has them
    nearest = np.argsort(-similarity)[:8]
    weights = {int(r): max(0.0, float(similarity[r])) ** 4 for r in nearest}
    scores: dict[int, float] = {}
    for row, weight in weights.items():
        scores[row] = scores.get(row, 0) + 0.4 * weight
        for other, npmi in neighbours[row].items():
            scores[other] = scores.get(other, 0) + npmi * weight / sum(weights.values())
    return scores


def test_lists_of_the_nearest_queries_are_merged_as_brute_force_merges_them(
    retrieval, texts, parts
):
    embeddings, _, neighbours = parts
    rng = np.random.default_rng(3)
    for _ in range(20):
        query = embeddings[rng.integers(len(texts))] + 0.3 * rng.normal(size=DIM)
        query = (query / np.linalg.norm(query)).astype(np.float32)
        scores = brute_force(embeddings, neighbours, query)
        found = retrieval.nearby("never searched", query)
        got = [scores[texts.index(t)] for t in found.texts if texts.index(t) in scores]
        assert len(got) == min(24, len(scores))
        best = sorted(scores.values(), reverse=True)[: len(got)]
        assert got == pytest.approx(best, abs=1e-5)
        assert set(found.npmi) == {0}  # the log does not know any pair with this query


def test_the_query_itself_is_never_a_candidate(retrieval, texts, parts):
    embeddings, _, _ = parts
    for row in range(0, len(texts), 17):
        assert texts[row] not in retrieval.nearby(texts[row], embeddings[row]).texts


def test_without_an_embedding_popular_queries_fill_up(retrieval, texts, parts):
    _, popularity, _ = parts
    found = retrieval.nearby("never searched", None)
    assert found.texts == [texts[r] for r in np.argsort(-popularity)[:24]]
    assert found.cooccurring == []


@pytest.mark.parametrize("num_fences", [1, 2, 7, 299, 300, 4096])
def test_texts_are_found_however_many_of_them_are_at_hand(
    texts, place, monkeypatch, num_fences: int
):
    monkeypatch.setattr("engine.formats.index._NUM_FENCES", num_fences)
    index = CooccurrenceIndex(*place)
    assert [index.find(t) for t in texts] == list(range(len(texts)))
    for absent in ("", "a", "red", texts[0] + "x", texts[-1] + "x", "zzz"):
        assert index.find(absent) is None
    for prefix in ("", "r", "red", "red s", "größe", "靴", "zzz", texts[0], texts[-1]):
        expected = [r for r, t in enumerate(texts) if t.startswith(prefix)]
        assert sorted(index.starting_with(prefix, len(texts)).tolist()) == expected


@pytest.mark.parametrize("block", [1, 2, 7, 64])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_the_most_searched_with_a_prefix_are_found_block_by_block(
    texts, place, tmp_path, monkeypatch, block: int, k: int
):
    directory, spec = place
    copied = shutil.copytree(directory, tmp_path / "index")
    popularity = np.random.default_rng(3).zipf(2.0, len(texts)).astype(np.float32)  # many ties
    np.save(copied / "popularity.npy", popularity)
    monkeypatch.setattr("engine.formats.index._BLOCK", block)
    index = CooccurrenceIndex(copied, spec)
    for prefix in ("", "r", "red", "red s", "blue", "größe", "zzz", texts[0], texts[-1]):
        rows = [r for r, t in enumerate(texts) if t.startswith(prefix)]
        expected = sorted(rows, key=lambda r: (-popularity[r], r))[:k]
        assert index.starting_with(prefix, k).tolist() == expected
        assert index.num_searches(prefix) == popularity[rows].sum()


@pytest.mark.parametrize("prefix", ["r", "red", "red s", "größe", "gr", "靴", "x", "red shoe 1"])
def test_completions_are_the_most_searched_queries_with_the_prefix(retrieval, texts, parts, prefix):
    _, popularity, _ = parts
    rows = [r for r, t in enumerate(texts) if t.startswith(prefix) and t != prefix]
    expected = sorted(rows, key=lambda r: -popularity[r])[:24]
    found = retrieval.completions(prefix, []).texts
    assert found[: len(expected)] == [texts[r] for r in expected]
    assert len(found) == len(expected) or len(expected) < 12, "suffix completions only fill up"


def test_completions_that_follow_the_last_query_of_the_session_come_first(retrieval, texts, parts):
    _, _, neighbours = parts
    row = row_where(neighbours, lambda n: n >= 10)
    following = list(neighbours[row])
    prefix = texts[following[3]][:1]
    expected = [texts[r] for r in following if texts[r].startswith(prefix)]
    found = retrieval.completions(prefix, ["something", texts[row]]).texts
    assert found[: len(expected)] == expected
    assert len(set(found)) == len(found)


def test_known_figures_are_zero_where_the_log_is_silent(retrieval, texts, parts):
    _, popularity, neighbours = parts
    row = row_where(neighbours, lambda n: n >= 3)
    neighbour = next(iter(neighbours[row]))
    counts, npmi = retrieval.known(texts[row], [texts[neighbour], "never searched"])
    assert counts == [popularity[neighbour], 0]
    assert npmi == pytest.approx([neighbours[row][neighbour], 0])


def test_a_sound_index_finds_its_own_vectors(index):
    assert index.lost_rows(64) == []


def test_rare_prefix_is_completed_by_its_last_words(retrieval: Retrieval, texts) -> None:
    found = retrieval.completions("zebra red sh", ())
    assert found.texts
    assert found.cooccurring == []
    assert set(found.popularity) == {0.0}
    for text in found.texts:
        assert text.startswith("zebra red sh")
        assert text.removeprefix("zebra ") in texts or text.removeprefix("zebra red ") in texts


def test_last_words_are_not_used_where_the_whole_prefix_is_known_well(
    retrieval: Retrieval, texts
) -> None:
    found = retrieval.completions("red ", ()).texts
    assert found
    assert all(t in texts for t in found)


def test_prefix_of_one_unknown_word_has_no_completion(retrieval: Retrieval) -> None:
    assert retrieval.completions("zebr", ()).texts == []
    assert retrieval.completions("zebra ", ()).texts == []


def test_of_a_prefix_of_many_words_only_the_last_are_looked_up(index) -> None:
    retrieval = Retrieval(index, max_candidates=24, max_cooccurring=5, num_nearest=8)
    found = retrieval.completions("x " * 120 + "red sh", ()).texts
    assert found
    assert all(t.startswith("x " * 120 + "red sh") for t in found)
    assert retrieval._starting_with.cache_info().misses <= 10
