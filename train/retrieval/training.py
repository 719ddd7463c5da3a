"""Trains the query encoder: queries that people search one after another lie close together.

Contrastive learning in the form of SimCSE (arXiv 2104.08821): InfoNCE over cosine similarities
with in-batch and hard negatives, on co-occurrence pairs weighted by NPMI; queries without pairs
are their own positive under another dropout mask. Knows nothing of the index that is built from
the embeddings, nor of how pairs were mined.
"""

# B batch of pairs, N columns of candidates, Q queries, D model dim, T tokens
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertModel, set_seed

from engine.formats.manifest import MAX_ENCODER_TOKENS
from engine.formats.vocabulary import Vocabulary
from train.mining.mine import CONTEXTS
from train.models.backbone import Shape, bert_config
from train.models.pace import PacedTrainer, trainer_arguments
from train.retrieval.contrast import CooccurrenceGraph, Ids, hard_negatives, info_nce
from train.retrieval.encoder import TOKENIZER_FILE, Encoder, HuggingFaceTokenizer, padded
from train.retrieval.pairs import Pairs, read_pairs, rows_of
from train.settings import EncoderConfig

_RECALL_AT = 20
_MIN_PAIR_WEIGHT = 0.05  # pairs of weak association still count a little
_MAX_EVALUATED = 4000  # held-out (query, next query) pairs that recall is measured on
_UNPAIRED_WEIGHT = 0.2  # of a query without pairs, as its own positive
_DROPOUT = 0.1  # SimCSE's, which makes two views of one query
_BLOCK = 65_536  # queries compared at once with 256 others: 270 MB with their order
_NUM_CHUNKS = 4  # a batch is computed in so many groups of similar length: less padding


class Recall(NamedTuple):
    """Share of held-out next queries found among 20 retrieved, per way to retrieve."""

    num_pairs: int
    encoder: float
    adjacency: float  # queries that followed in the training log, best NPMI first
    both: float  # adjacency first, the rest filled up by the encoder
    num_without_adjacency: int
    encoder_without_adjacency: float  # where the log knows no next query (0 if there are none)


def train_encoder(
    run: Path, config: EncoderConfig, *, shape: Shape, seed: int, output: Path
) -> Recall:
    """Trains on `run`/mined and writes the model and metrics.json into `output`.

    A call that was interrupted goes on from its last checkpoint in `output`. An encoder with a
    tokenizer of its own (base checkpoint) also writes that.

    Raises:
        ValueError: nothing was mined to train on, a pair names a query that was not mined, or the
            base checkpoint cannot be used.
    """
    set_seed(seed)
    queries: list[str] = pq.read_table(run / "mined/queries.parquet")["text"].to_pylist()
    if len(queries) < 2:
        raise ValueError(f"{run}/mined/queries.parquet has {len(queries)} queries, needs 2 or more")
    pairs = read_pairs(run / "mined", queries)
    graph = CooccurrenceGraph(pairs.sources, pairs.targets, pairs.npmi, len(queries))

    encoder = _new_encoder(run, config, shape)
    dataset = PairsInOrder.of(graph, len(queries), config, seed)
    collator = _Collator(encoder.token_ids(queries), graph, hard_negatives(queries, graph, seed))
    trainer = _EncoderTrainer(
        model=encoder,
        args=trainer_arguments(
            output / "checkpoints",
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=0.01,
            bf16=config.bf16,
            seed=seed,
        ),
        train_dataset=dataset,
        data_collator=collator,
        temperature=config.temperature,
        max_train_s=config.max_train_s,
        warmup_share=0.05,
    )
    trainer.train_resumable()

    encoder.eval()
    encoder.backbone.save_pretrained(output)
    if isinstance(encoder.tokenizer, HuggingFaceTokenizer):
        encoder.tokenizer.save(output / TOKENIZER_FILE)
    recall = _measure(encoder, run, queries, pairs)
    metrics = {f"recall_at_{_RECALL_AT}": recall._asdict(), "num_queries": len(queries)}
    (output / "metrics.json").write_bytes(msgspec.json.format(msgspec.json.encode(metrics)))
    trainer.remove_checkpoints()
    return recall


def recall_at_20(
    embeddings_QD: NDArray[np.float32],
    pairs: tuple[Ids, Ids, NDArray[np.float32]],
    held_out: Sequence[tuple[int, int]],
) -> Recall:
    """Returns how often the next query of held-out (query row, next row) is retrieved.

    Exact search (no HNSW); a query never retrieves itself.

    Args:
        embeddings_QD: unit norm.
        pairs: source rows, target rows and NPMI of the training log.
        held_out: distinct rows; may be empty, then all shares are 0.
    """
    sources, targets, npmi = pairs
    order = np.lexsort((-npmi, sources))
    sources, targets = sources[order], targets[order]
    starts = np.searchsorted(sources, np.arange(len(embeddings_QD) + 1))
    hits = {"encoder": 0, "adjacency": 0, "both": 0, "cold": 0}
    num_cold = 0
    for start in range(0, len(held_out), 256):
        chunk = np.array(held_out[start : start + 256])
        for (query, following), near in zip(
            chunk, _nearest(embeddings_QD, chunk[:, 0]), strict=True
        ):
            adjacent = targets[starts[query] : starts[query + 1]][:_RECALL_AT]
            filled = [*adjacent, *(row for row in near if row not in adjacent)][:_RECALL_AT]
            hits["encoder"] += following in near
            hits["adjacency"] += following in adjacent
            hits["both"] += following in filled
            if len(adjacent) == 0:
                num_cold += 1
                hits["cold"] += following in near
    num_pairs = max(1, len(held_out))
    return Recall(
        num_pairs=len(held_out),
        encoder=hits["encoder"] / num_pairs,
        adjacency=hits["adjacency"] / num_pairs,
        both=hits["both"] / num_pairs,
        num_without_adjacency=num_cold,
        encoder_without_adjacency=hits["cold"] / max(1, num_cold),
    )


def _nearest(embeddings_QD: NDArray[np.float32], rows_B: Ids) -> Ids:
    """Returns int64 (B, 20 at most): the nearest other rows of each row, best first."""
    k = min(_RECALL_AT, len(embeddings_QD) - 1)
    best_BK = np.full((len(rows_B), k), -np.inf, np.float32)
    found_BK = np.zeros((len(rows_B), k), np.int64)
    for start in range(0, len(embeddings_QD), _BLOCK):
        scores_BX = embeddings_QD[rows_B] @ embeddings_QD[start : start + _BLOCK].T
        own = np.flatnonzero((rows_B >= start) & (rows_B < start + _BLOCK))
        scores_BX[own, rows_B[own] - start] = -np.inf
        both_BX = np.concatenate([best_BK, scores_BX], 1)
        place_BK = np.argpartition(both_BX, -k, axis=1)[:, -k:]
        best_BK = np.take_along_axis(both_BX, place_BK, 1)
        earlier_BK = np.take_along_axis(found_BK, np.minimum(place_BK, k - 1), 1)
        found_BK = np.where(place_BK < k, earlier_BK, place_BK - k + start)
    return np.take_along_axis(found_BK, np.argsort(-best_BK, axis=1), 1)


def _measure(encoder: Encoder, run: Path, queries: list[str], pairs: Pairs) -> Recall:
    contexts = pq.read_table(
        run / "mined" / CONTEXTS, columns=["query", "target"], filters=[("split", "==", "valid")]
    )
    ends = np.stack([rows_of(contexts[name], queries) for name in ("query", "target")], axis=1)
    is_usable = (ends >= 0).all(1) & (ends[:, 0] != ends[:, 1])
    held_out = np.unique(ends[is_usable], axis=0)
    chosen = np.random.default_rng(0).permutation(len(held_out))[:_MAX_EVALUATED]
    return recall_at_20(encoder.embed(queries), pairs[:3], held_out[chosen].tolist())


def _new_encoder(run: Path, config: EncoderConfig, shape: Shape) -> Encoder:
    if config.base_checkpoint:
        return Encoder.of_checkpoint(config.base_checkpoint)
    vocabulary = Vocabulary.load(run / "tokenizer.json")
    bert = bert_config(shape, vocabulary.size, MAX_ENCODER_TOKENS)
    bert.hidden_dropout_prob = bert.attention_probs_dropout_prob = _DROPOUT
    return Encoder(BertModel(bert, add_pooling_layer=False), vocabulary)


class PairsInOrder(Dataset[tuple[int, int, float]]):
    """(source row, target row, weight) in the order of training, over all epochs.

    Which end of a pair is the source, which alone has hard negatives, is drawn anew in each.
    """

    def __init__(
        self,
        pairs: Ids,
        weights: NDArray[np.float32],
        order: Ids,
        is_turned: NDArray[np.bool_],
    ) -> None:
        """Takes pairs with their weights, and for each place in order which one, turned or not."""
        self._pairs, self._weights, self._order = pairs, weights, order
        self._is_turned = is_turned

    @classmethod
    def of(
        cls, graph: CooccurrenceGraph, num_queries: int, config: EncoderConfig, seed: int
    ) -> "PairsInOrder":
        """Returns the pairs of a graph, and queries without any as pairs of their own."""
        lonely = np.setdiff1d(np.arange(num_queries), graph.pairs)
        pairs = np.concatenate([graph.pairs, np.stack([lonely, lonely], axis=1)])
        weights = np.concatenate(
            [
                np.clip(graph.npmi, _MIN_PAIR_WEIGHT, 1),
                np.full(len(lonely), _UNPAIRED_WEIGHT, np.float32),
            ]
        )
        random = np.random.default_rng(seed)
        num_rounds = math.ceil(config.num_epochs)
        order = np.concatenate([random.permutation(len(pairs)) for _ in range(num_rounds)])
        order = order[: max(config.batch_size, round(config.num_epochs * len(pairs)))]
        return cls(pairs, weights, order, random.random(len(order)) < 0.5)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[int, int, float]:
        row = self._order[index]
        source, target = self._pairs[row][:: -1 if self._is_turned[index] else 1]
        return int(source), int(target), float(self._weights[row])


class _Collator:
    """Makes a batch of pairs: its texts in groups of similar length, and what is no negative."""

    def __init__(self, ids: list[list[int]], graph: CooccurrenceGraph, negatives: Ids) -> None:
        self._ids, self._graph, self._negatives = ids, graph, negatives

    def __call__(self, pairs: Sequence[tuple[int, int, float]]) -> dict[str, Any]:
        sources = np.array([p[0] for p in pairs], np.int64)
        targets = np.array([p[1] for p in pairs], np.int64)
        # Which of a query's hard negatives is used rotates with its partner.
        hard = self._negatives[sources, targets % self._negatives.shape[1]]
        columns = np.concatenate([targets, hard])
        ignored_BN = self._graph.are_linked(sources[:, None], columns[None, :])
        rows = np.concatenate([sources, columns])
        order = np.argsort([len(self._ids[r]) for r in rows], kind="stable")
        chunks = [c for c in np.array_split(order, _NUM_CHUNKS) if len(c)]
        return {
            "texts": [padded([self._ids[rows[i]] for i in chunk]) for chunk in chunks],
            "places": torch.from_numpy(np.argsort(order)),
            "ignored": torch.from_numpy(ignored_BN),
            "weights": torch.tensor([p[2] for p in pairs]),
        }


class _EncoderTrainer(PacedTrainer):
    """Trainer with the contrastive loss."""

    def __init__(self, *, temperature: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._temperature = temperature

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        embeddings = torch.cat([model(**texts) for texts in inputs["texts"]])[inputs["places"]]
        anchors_BD, positives_BD, negatives_BD = embeddings.chunk(3)
        return info_nce(
            anchors_BD,
            positives_BD,
            negatives_BD,
            ignored_BN=inputs["ignored"],
            weights_B=inputs["weights"],
            temperature=self._temperature,
        )
