"""A graph finds what exact search finds, and refuses files that are not its own."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from engine.formats.graph import Graph

NUM, DIM, K = 3000, 24, 10


@pytest.fixture(scope="module")
def embeddings_QD() -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(NUM, DIM)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def built(embeddings_QD: np.ndarray) -> Graph:
    graph = Graph.empty(DIM, m=16, ef_construction=100)
    for start in range(0, len(embeddings_QD), 1000):
        graph.add(embeddings_QD[start : start + 1000], num_threads=1)
    return graph


@pytest.fixture(scope="module")
def path(embeddings_QD, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "hnsw.faiss"
    built(embeddings_QD).save(path)
    return path


def test_with_enough_effort_the_nearest_are_found_best_first(embeddings_QD, path):
    graph = Graph.load(path, dim=DIM, ef_search=NUM)
    halves_QD = embeddings_QD.astype(np.float16).astype(np.float32)
    for asked_D in embeddings_QD[::100] @ np.linalg.qr(embeddings_QD[:DIM])[0]:
        rows, similarities = graph.nearest(asked_D, K)
        exact_Q = halves_QD @ asked_D
        np.testing.assert_allclose(similarities, -np.sort(-exact_Q)[:K], atol=1e-6)
        np.testing.assert_allclose(exact_Q[rows], similarities, atol=1e-6)
        assert rows.dtype == np.int32


def test_little_effort_finds_fewer(embeddings_QD, path):
    def num_found(ef_search: int) -> int:
        graph = Graph.load(path, dim=DIM, ef_search=ef_search)
        best = np.argsort(-(embeddings_QD @ embeddings_QD[:200].T), axis=0)[:K].T
        return sum(
            len({*graph.nearest(asked_D, K)[0]} & {*exact})
            for asked_D, exact in zip(embeddings_QD, best, strict=False)
        )

    assert 0.3 * 200 * K < num_found(K) < num_found(64) <= 200 * K


def test_vectors_are_those_that_were_added(embeddings_QD, path):
    graph = Graph.load(path, dim=DIM, ef_search=16)
    assert len(graph) == NUM
    rows = np.array([NUM - 1, 0, 7])
    np.testing.assert_array_equal(graph.vectors(rows), embeddings_QD[rows].astype(np.float16))


def test_one_thread_builds_the_same_file_again(embeddings_QD, path, tmp_path):
    built(embeddings_QD).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_more_threads_link_all_vectors(embeddings_QD, tmp_path):
    graph = Graph.empty(DIM, m=16, ef_construction=100)
    graph.add(embeddings_QD, num_threads=2)
    graph.save(tmp_path / "graph")
    loaded = Graph.load(tmp_path / "graph", dim=DIM, ef_search=200)
    found = [loaded.nearest(vector_D, 1)[0][0] for vector_D in embeddings_QD]
    assert np.mean(found == np.arange(NUM)) > 0.995


def test_a_graph_of_two_vectors_finds_two(embeddings_QD, tmp_path):
    built(embeddings_QD[:2]).save(tmp_path / "graph")
    rows, _ = Graph.load(tmp_path / "graph", dim=DIM, ef_search=16).nearest(embeddings_QD[1], K)
    assert rows.tolist() == [1, 0]


def test_a_file_of_something_else_is_refused(path, embeddings_QD, tmp_path):
    with pytest.raises(FileNotFoundError):
        Graph.load(tmp_path / "none", dim=DIM, ef_search=16)
    (tmp_path / "text").write_text("no graph")
    with pytest.raises(ValueError, match="text: is no graph of faiss, or a damaged one"):
        Graph.load(tmp_path / "text", dim=DIM, ef_search=16)
    with pytest.raises(ValueError, match="24 dimensions; should be IndexHNSWSQ, metric 0, 16"):
        Graph.load(path, dim=16, ef_search=16)
    flat = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
    flat.add(embeddings_QD)
    faiss.write_index(flat, str(tmp_path / "flat"))
    with pytest.raises(ValueError, match="holds IndexHNSWFlat"):
        Graph.load(tmp_path / "flat", dim=DIM, ef_search=16)
    kind = faiss.ScalarQuantizer.QT_fp16
    distances = faiss.IndexHNSWSQ(DIM, kind, 16, faiss.METRIC_L2)  # pyright: ignore[reportArgumentType]
    distances.add(embeddings_QD)
    faiss.write_index(distances, str(tmp_path / "distances"))
    with pytest.raises(ValueError, match="metric 1, 24"):
        Graph.load(tmp_path / "distances", dim=DIM, ef_search=16)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
def test_a_full_disk_is_an_error_of_the_disk(embeddings_QD):
    with pytest.raises(OSError, match=r"full: cannot be written: .*No space left"):
        built(embeddings_QD).save(Path("/dev/full"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_is_refused(path, tmp_path, share):
    content = path.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="damaged"):
        Graph.load(tmp_path / "cut", dim=DIM, ef_search=16)
