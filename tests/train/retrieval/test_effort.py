"""The chosen effort finds enough of the nearest, and no lesser one does."""

from pathlib import Path

import numpy as np
import pytest

from engine.formats.graph import Graph
from train.retrieval.effort import least_effort, probe_texts

NUM, DIM, K = 2000, 24, 10


def unit(rng: np.random.Generator, num: int) -> np.ndarray:
    vectors = rng.normal(size=(num, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def saved(embeddings_QD: np.ndarray, path: Path) -> Path:
    graph = Graph.empty(DIM, m=5, ef_construction=40)
    graph.add(embeddings_QD, num_threads=1)
    graph.save(path)
    return path


@pytest.fixture(scope="module")
def embeddings_QD() -> np.ndarray:
    return unit(np.random.default_rng(0), NUM)


@pytest.fixture(scope="module")
def probes_HD() -> np.ndarray:
    return unit(np.random.default_rng(1), 200)


@pytest.fixture(scope="module")
def graph_file(embeddings_QD, tmp_path_factory) -> Path:
    """A sparse graph: little effort finds little."""
    return saved(embeddings_QD, tmp_path_factory.mktemp("graph") / "graph")


def recall(graph_file: Path, embeddings_QD, probes_HD, effort: int) -> float:
    graph = Graph.load(graph_file, dim=DIM, ef_search=effort)
    num_found = 0
    for probe_D in probes_HD:
        exact = np.argsort(-(embeddings_QD @ probe_D))[:K]
        found, _ = graph.nearest(probe_D, K)
        num_found += len(set(exact.tolist()) & set(found.tolist()))
    return num_found / (K * len(probes_HD))


@pytest.mark.parametrize("min_recall", [0.6, 0.9])
def test_the_least_effort_that_finds_enough(graph_file, embeddings_QD, probes_HD, min_recall):
    lines: list[str] = []
    effort = least_effort(
        graph_file, embeddings_QD, probes_HD, min_recall=min_recall, report=lines.append
    )
    found = recall(graph_file, embeddings_QD, probes_HD, effort)
    assert found >= min_recall
    assert lines == [f"index: ef_search {effort} finds {found:.3f} of the 10 nearest queries"]
    lesser = {24: 16, 32: 24, 48: 32, 64: 48, 96: 64, 144: 96, 192: 144, 288: 192, 384: 288}
    if effort > 16:
        assert recall(graph_file, embeddings_QD, probes_HD, lesser[effort]) < min_recall


def test_more_recall_takes_more_effort(graph_file, embeddings_QD, probes_HD):
    efforts = [
        least_effort(graph_file, embeddings_QD, probes_HD, min_recall=r) for r in (0.6, 0.9, 0.99)
    ]
    assert efforts == sorted(set(efforts))


def test_an_index_of_fewer_than_ten_queries(embeddings_QD, probes_HD, tmp_path):
    path = saved(embeddings_QD[:3], tmp_path / "graph")
    assert least_effort(path, embeddings_QD[:3], probes_HD, min_recall=1.0) == 16


def test_a_small_index_without_probes_is_searched_with_the_least_effort(embeddings_QD, tmp_path):
    path, lines = saved(embeddings_QD[:1], tmp_path / "graph"), list[str]()
    assert probe_texts(["wireless mouse"], seed=0) == []
    none = np.empty((0, DIM), np.float32)
    effort = least_effort(path, embeddings_QD[:1], none, min_recall=0.9, report=lines.append)
    assert effort == 16
    assert lines == ["index: ef_search 16: no probes could be made of the queries"]


def test_a_large_index_without_probes_is_searched_with_the_most_effort(graph_file, embeddings_QD):
    none = np.empty((0, DIM), np.float32)
    assert probe_texts([f"{a} {b}" for a in "abcdef" for b in "abcdef"], seed=0) == []
    assert least_effort(graph_file, embeddings_QD, none, min_recall=0.9) == 512
    assert least_effort(graph_file, embeddings_QD, none, min_recall=0.9, otherwise=96) == 96


def test_probes_are_made_of_the_words_of_two_queries():
    texts = [f"word{i} end{i}" for i in range(3000)] + ["alone"]
    probes = probe_texts(texts, seed=1)
    assert probes == probe_texts(texts, seed=1) != probe_texts(texts, seed=2)
    assert len(probes) == 1000
    assert len(set(probes) - set(texts)) > 990
    for probe in probes:
        first, last = probe.split()
        assert first == "alone" or first.startswith("word")
        assert last == "alone" or last.startswith("end")


def test_probes_of_scripts_without_spaces_have_none_and_are_as_long_as_queries():
    texts = ["全自动咖啡机", "全自动洗衣机", "红色运动鞋店", "蓝色连衣裙子"]
    probes = probe_texts(texts, seed=0)
    assert probes
    assert {len(p) for p in probes} == {6}
    assert {p[:4] for p in probes} <= {t[:4] for t in texts}
    assert {p[4:] for p in probes} <= {t[4:] for t in texts}
