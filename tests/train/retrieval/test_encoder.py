import math
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import (
    BertModel,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
)

from engine.formats.manifest import MAX_ENCODER_TOKENS
from engine.formats.vocabulary import Vocabulary
from train.models.backbone import bert_config, shapes_of
from train.models.pace import TimeLimit, learning_rate_factor, trainer_arguments
from train.retrieval.contrast import CooccurrenceGraph, hard_negatives, info_nce
from train.retrieval.encoder import Encoder, HuggingFaceTokenizer, encoder_tokenizer
from train.retrieval.training import PairsInOrder, recall_at_20, train_encoder
from train.settings import EncoderConfig


def test_loss_by_hand() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    positives = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    negatives = torch.tensor([[0.8, 0.6]])
    ignored = torch.zeros(2, 3, dtype=torch.bool)
    loss = info_nce(
        anchors,
        positives,
        negatives,
        ignored_BN=ignored,
        weights_B=torch.tensor([3.0, 1.0]),
        temperature=0.5,
    )
    e = math.exp
    first = -math.log(e(2) / (e(2) + e(1.2) + e(1.6))) - math.log(e(2) / (e(2) + e(0)))
    second = -math.log(e(1.6) / (e(0) + e(1.6) + e(1.2))) - math.log(e(1.6) / (e(1.2) + e(1.6)))
    assert loss.item() == pytest.approx((3 * first + second) / (2 * 4), rel=1e-5)


def test_an_ignored_column_is_no_negative_but_the_diagonal_always_counts() -> None:
    torch.manual_seed(0)
    anchors, positives = F.normalize(torch.randn(2, 3, 4), dim=-1)
    negatives = F.normalize(torch.randn(1, 4), dim=-1)
    weights = torch.ones(3)
    everything = torch.ones(3, 4, dtype=torch.bool)
    loss = info_nce(
        anchors, positives, negatives, ignored_BN=everything, weights_B=weights, temperature=0.1
    )
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_loss_is_computed_in_float32_under_autocast_too() -> None:
    torch.manual_seed(0)
    anchors, positives, negatives = F.normalize(torch.randn(3, 64, 32), dim=-1)

    def loss() -> float:
        ignored, weights = torch.zeros(64, 128, dtype=torch.bool), torch.ones(64)
        return info_nce(
            anchors,
            positives,
            negatives,
            ignored_BN=ignored,
            weights_B=weights,
            temperature=0.05,
        ).item()

    alone = loss()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss() == alone


def test_either_end_of_a_pair_is_the_one_with_hard_negatives_in_some_epochs() -> None:
    ends = np.arange(200)
    graph = CooccurrenceGraph(ends[:100], ends[100:], np.full(100, 0.5, np.float32), 201)
    config = EncoderConfig(num_epochs=20, batch_size=10)
    pairs, again = (PairsInOrder.of(graph, 201, config, seed=3) for _ in range(2))
    assert len(pairs) == 20 * 101
    assert [pairs[i] for i in range(len(pairs))] == [again[i] for i in range(len(pairs))]
    first = np.array([pairs[i][0] for i in range(len(pairs))])
    counts = np.bincount(first, minlength=201)
    assert (counts[:100] + counts[100:200] == 20).all()
    assert counts[:200].min() > 0
    assert counts[:100].sum() == pytest.approx(1000, abs=100)
    assert counts[200] == 20, "a query without pairs is its own partner"


def test_graph_joins_both_directions_and_keeps_the_better_association() -> None:
    graph = CooccurrenceGraph(
        np.array([0, 2, 1]), np.array([2, 0, 1]), np.array([0.2, 0.7, 0.9], np.float32), 4
    )
    assert graph.pairs.tolist() == [[0, 2], [1, 1]]
    assert graph.npmi.tolist() == pytest.approx([0.7, 0.9])
    linked = graph.are_linked(np.array([0, 2, 0, 3]), np.array([2, 0, 1, 3]))
    assert linked.tolist() == [True, True, False, True]


def test_hard_negatives_share_a_word_and_do_not_co_occur() -> None:
    texts = [f"{a} {b}" for a in ("red", "blue", "green") for b in ("shoe", "hat", "coat", "bag")]
    graph = CooccurrenceGraph(np.array([0]), np.array([1]), np.ones(1, np.float32), len(texts))
    negatives = hard_negatives(texts, graph, seed=0)
    assert negatives.shape == (len(texts), 4)
    for row, found in enumerate(negatives):
        assert not graph.are_linked(np.full(4, row), found).any()
    shares = [
        bool(set(texts[row].split()) & set(texts[n].split()))
        for row, found in enumerate(negatives)
        for n in found
    ]
    assert np.mean(shares) > 0.9


def test_hard_negatives_of_scripts_without_spaces_share_neighbouring_characters() -> None:
    texts = [f"{a}{b}" for a in ("红色", "蓝色", "绿色") for b in ("鞋子", "帽子", "大衣", "书包")]
    none = np.array([], np.int64)
    graph = CooccurrenceGraph(none, none, np.array([], np.float32), len(texts))
    negatives = hard_negatives(texts, graph, seed=0)
    shares = [
        texts[row][:2] == texts[n][:2] or texts[row][2:] == texts[n][2:]
        for row, found in enumerate(negatives)
        for n in found
    ]
    assert np.mean(shares) > 0.9  # by chance: 5 of 11


def test_recall_by_hand() -> None:
    # Rows 0 and 1 point the same way; 2 is far off but follows 0 in the log.
    embeddings = np.eye(30, dtype=np.float32)
    embeddings[1] = embeddings[0]
    pairs = (np.array([0]), np.array([2]), np.ones(1, np.float32))
    recall = recall_at_20(embeddings, pairs, [(0, 1), (0, 2), (5, 29)])
    assert recall.num_pairs == 3
    assert recall.adjacency == pytest.approx(1 / 3)
    assert recall.encoder >= 1 / 3
    assert recall.both >= 2 / 3
    assert recall.num_without_adjacency == 1


def test_recall_is_that_of_all_similarities_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.retrieval.training._BLOCK", 37)
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(300, 4)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    similar = embeddings @ embeddings.T
    np.fill_diagonal(similar, -1)
    best = np.argsort(-similar, axis=1)[:, :20]
    held_out = [(a, b) for a in range(300) for b in random.integers(300, size=5) if a != b]
    no_pairs = np.array([], np.int64), np.array([], np.int64), np.array([], np.float32)
    recall = recall_at_20(embeddings, no_pairs, held_out)
    expected = sum(b in best[a] for a, b in held_out)
    assert expected > 50
    assert recall.encoder == recall.both == recall.encoder_without_adjacency
    assert recall.encoder == pytest.approx(expected / len(held_out))


def test_recall_takes_the_same_memory_for_any_number_of_queries() -> None:
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(1_000_000, 2)).astype(np.float32)
    no_pairs = np.array([], np.int64), np.array([], np.int64), np.array([], np.float32)
    tracemalloc.start()
    try:
        recall_at_20(embeddings, no_pairs, [(i, i + 1) for i in range(16)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**26  # the similarities of all: 64 MB, their order 128


def test_trained_encoder_finds_held_out_next_queries(mined_run: Path, tmp_path: Path) -> None:
    run = _linked_run(mined_run, tmp_path)
    config = EncoderConfig(num_epochs=20, batch_size=64, learning_rate=3e-3)
    shape = shapes_of("tiny").encoder
    recall = train_encoder(run, config, shape=shape, seed=0, output=run / "encoder")
    assert recall.num_pairs == 240
    assert recall.adjacency == 0  # held-out pairs are not in the log
    assert recall.encoder > 0.8  # chance: 20 of 239
    assert not (run / "encoder/checkpoints").exists()
    metrics = msgspec.json.decode((run / "encoder/metrics.json").read_bytes())
    assert metrics["recall_at_20"]["encoder"] == recall.encoder

    encoder = Encoder.load(run)
    texts = ["some words", "", "some words and quite a few more of them", "x" * 300]
    together = encoder.embed(texts)
    alone = np.concatenate([encoder.embed([t]) for t in texts])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-5)  # padding changes nothing


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
WORDS += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]


def checkpoint(directory: Path, model: PreTrainedModel) -> Path:
    directory.mkdir()
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


def bert(num_positions: int) -> BertModel:
    config = bert_config(shapes_of("tiny").encoder, len(WORDS), num_positions)
    config.max_position_embeddings = num_positions  # fewer than the least that is trained
    return BertModel(config, add_pooling_layer=False)


def test_queries_are_cut_where_the_engine_cuts_them(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", bert(512))
    (ids,) = Encoder.of_checkpoint(str(base)).token_ids(["a" * 100])
    assert len(ids) == MAX_ENCODER_TOKENS


def test_a_checkpoint_that_reads_less_than_the_engine_gives_it_is_refused(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", bert(MAX_ENCODER_TOKENS - 1))
    with pytest.raises(ValueError, match="base reads up to 63 tokens, must be at least 64"):
        Encoder.of_checkpoint(str(base))


def test_a_checkpoint_whose_weights_are_damaged_is_named(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", bert(64))
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"base cannot be loaded: .*weights cannot be read"):
        Encoder.of_checkpoint(str(base))


def test_a_base_checkpoint_may_have_no_pooling_layer_to_leave_out(tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=len(WORDS), dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    base = checkpoint(tmp_path / "base", DistilBertModel(config))
    encoder = Encoder.of_checkpoint(str(base))
    np.testing.assert_allclose(np.linalg.norm(encoder.embed(["ab", "c"]), axis=1), 1, rtol=1e-5)
    assert encoder.embedding_dim == 32


class Counting:
    """A tokenizer that remembers how many texts it took at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode_batch(self, texts: list[str]) -> list[Any]:
        self.sizes.append(len(texts))
        return self.tokenizer.encode_batch(texts)


def test_many_texts_are_never_encoded_all_at_once(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", bert(64))
    counting = Counting(Tokenizer.from_file(str(base / "tokenizer.json")))
    tokenizer = HuggingFaceTokenizer(counting)  # pyright: ignore[reportArgumentType]
    texts = [chr(ord("a") + i % 26) for i in range(20_000)]
    letters = [WORDS[ids[1]] for ids in tokenizer.encode_batch(texts)]
    assert letters == texts
    assert max(counting.sizes) < 10_000


def test_a_base_checkpoint_keeps_its_own_tokenizer(mined_run: Path, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", bert(64))
    run = _linked_run(mined_run, tmp_path / "run")
    settings = EncoderConfig(num_epochs=0.1, batch_size=16, base_checkpoint=str(base))
    train_encoder(run, settings, shape=shapes_of("small").encoder, seed=0, output=run / "encoder")
    encoder = Encoder.load(run)
    assert encoder.embedding_dim == 32  # the checkpoint's, not the size's
    assert encoder.token_ids(["ab"]) == [[2, WORDS.index("a"), WORDS.index("##b"), 3]]

    assert encoder_tokenizer(run) == run / "encoder/encoder_tokenizer.json"

    # Another encoder that is not finished, or was interrupted, leaves this one as it is.
    own, partial = EncoderConfig(num_epochs=0.1, batch_size=16), run / "encoder.partial"
    train_encoder(run, own, shape=shapes_of("tiny").encoder, seed=0, output=partial)
    assert Encoder.load(run).token_ids(["ab"]) == encoder.token_ids(["ab"])
    shutil.rmtree(run / "encoder")
    partial.rename(run / "encoder")
    assert encoder_tokenizer(run) == run / "tokenizer.json"
    vocabulary = Vocabulary.load(run / "tokenizer.json")
    assert Encoder.load(run).token_ids(["ab"]) == vocabulary.encode_batch(["ab"])


def test_a_pair_of_a_query_that_was_not_mined_is_told_without_its_text(
    mined_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(mined_run, run)
    queries = pq.read_table(run / "mined/queries.parquet")
    pq.write_table(queries.slice(1), run / "mined/queries.parquet")
    lost: str = queries["text"][0].as_py()
    with pytest.raises(ValueError, match="mine again") as raised:
        train_encoder(
            run, EncoderConfig(), shape=shapes_of("tiny").encoder, seed=0, output=run / "encoder"
        )
    assert f"the query {len(lost)} characters long" in str(raised.value)
    assert lost not in str(raised.value)


def test_same_seed_gives_the_same_encoder(mined_run: Path, tmp_path: Path) -> None:
    config = EncoderConfig(num_epochs=1, batch_size=64)
    embeddings = []
    for name in ("a", "b"):
        run = _linked_run(mined_run, tmp_path / name)
        train_encoder(run, config, shape=shapes_of("tiny").encoder, seed=3, output=run / "encoder")
        embeddings.append(Encoder.load(run).embed(["blue suede shoes"]))
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=1e-6)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    assert learning_rate_factor(0.05, 0.1) == pytest.approx(0.5)
    assert learning_rate_factor(0.1, 0.1) == pytest.approx(1)
    assert learning_rate_factor(0.55, 0.1) == pytest.approx(0.5)
    assert learning_rate_factor(1.0, 0.1) == pytest.approx(0)


def test_time_limit_counts_from_the_start_and_stops() -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    now = 100.0
    limit = TimeLimit(10, clock=lambda: now)
    arguments, state, control = TrainingArguments(use_cpu=True), TrainerState(), TrainerControl()
    limit.on_train_begin(arguments, state, control)
    now = 105.0
    limit.on_step_end(arguments, state, control)
    assert limit.progress == pytest.approx(0.5)
    assert not control.should_training_stop
    now = 110.0
    limit.on_step_end(arguments, state, control)
    assert control.should_training_stop


def _linked_run(mined_run: Path, run: Path) -> Path:
    """Returns a run directory of its own that reads the shared mined tables."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "mined").symlink_to(mined_run / "mined")
    (run / "tokenizer.json").symlink_to(mined_run / "tokenizer.json")
    return run


@pytest.mark.parametrize("is_fast", [True, False])
def test_bfloat16_is_off_where_it_would_be_emulated(
    is_fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.models.pace.has_fast_bf16", lambda: is_fast)
    arguments = trainer_arguments(
        tmp_path, batch_size=1, learning_rate=1e-3, weight_decay=0.0, bf16=True, seed=0
    )
    assert arguments.bf16 == is_fast
