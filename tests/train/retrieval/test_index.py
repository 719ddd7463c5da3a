from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertModel

from engine.formats.index import CooccurrenceIndex
from engine.formats.manifest import IndexSpec
from engine.formats.vocabulary import Vocabulary
from train.models.backbone import bert_config, shapes_of
from train.retrieval.encoder import Encoder
from train.retrieval.index import build_index
from train.retrieval.pairs import Pairs, edge_lists
from train.settings import IndexConfig


@pytest.fixture(scope="module")
def run(mined_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an untrained encoder: the index must be right for any."""
    run = tmp_path_factory.mktemp("indexed")
    (run / "mined").symlink_to(mined_run / "mined")
    (run / "tokenizer.json").symlink_to(mined_run / "tokenizer.json")
    torch.manual_seed(0)
    size = Vocabulary.load(run / "tokenizer.json").size
    backbone = BertModel(bert_config(shapes_of("tiny").encoder, size, 16), add_pooling_layer=False)
    backbone.save_pretrained(run / "encoder")
    return run


def test_index_answers_what_was_mined(run: Path) -> None:
    spec = build_index(run, IndexConfig(max_edges=2), seed=0, output=run / "index")
    read = msgspec.json.decode((run / "index/index.json").read_bytes(), type=IndexSpec)
    assert read == spec
    assert (spec.num_queries, spec.embedding_dim, spec.min_users) == (240, 32, 5)

    index = CooccurrenceIndex(run / "index", spec)
    queries = pq.read_table(run / "mined/queries.parquet").to_pylist()
    assert [index.text(i) for i in range(len(index))] == [q["text"] for q in queries]
    assert index.popularity(7) == queries[7]["num_searches"]
    pairs = pq.read_table(run / "mined/pairs.parquet").to_pylist()
    row = index.find(queries[3]["text"])
    assert row == 3
    expected = sorted(
        (-p["association"], p["target"]) for p in pairs if p["source"] == queries[3]["text"]
    )[:2]
    rows, npmi = index.neighbours(row)
    assert [index.text(r) for r in rows] == [text for _, text in expected]
    assert npmi.tolist() == pytest.approx([-value for value, _ in expected])


def test_nearest_of_an_indexed_query_is_itself(run: Path) -> None:
    spec = build_index(run, IndexConfig(), seed=0, output=run / "index_again")
    index = CooccurrenceIndex(run / "index_again", spec)
    texts = [index.text(row) for row in (0, 100, 239)]
    for row, embedding in zip((0, 100, 239), Encoder.load(run).embed(texts), strict=True):
        rows, similarities = index.nearest(embedding, 3)
        assert row in rows
        assert similarities[0] == pytest.approx(1, abs=1e-4)


def test_same_seed_gives_the_same_files(run: Path) -> None:
    for name in ("one", "two"):
        build_index(run, IndexConfig(), seed=5, output=run / name)
    for path in sorted((run / "one").iterdir()):
        assert path.read_bytes() == (run / "two" / path.name).read_bytes(), path.name


def test_edges_are_cut_after_the_best_and_ties_go_to_the_more_frequent() -> None:
    pairs = Pairs(
        sources=np.array([2, 0, 2, 2, 2]),
        targets=np.array([0, 1, 1, 3, 4]),
        npmi=np.array([0.5, 0.1, 0.9, 0.5, 0.5], np.float32),
        num_pairs=np.array([3, 1, 1, 8, 3]),
        num_users=np.array([3, 1, 1, 8, 3]),
    )
    edges = edge_lists(pairs, num_queries=5, max_edges=3)
    assert edges.offsets.tolist() == [0, 1, 1, 4, 4, 4]
    assert edges.rows.tolist() == [1, 1, 3, 0]
    assert edges.npmi.tolist() == pytest.approx([0.1, 0.9, 0.5, 0.5])
