"""The query encoder: a text to a vector, such that queries searched one after another lie close.

Knows nothing of training, nor of the index that is built from the embeddings.
"""

# B batch, Q queries, D model dim, T tokens
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from engine.formats.manifest import MAX_ENCODER_TOKENS
from engine.formats.vocabulary import Vocabulary, read_tokenizer_file

TOKENIZER_FILE = "encoder_tokenizer.json"  # among the encoder's files, if it has its own
_BATCHES_A_LINE = 50  # of progress
_BATCH = 8192  # texts


class BatchTokenizer(Protocol):
    """Turns texts into token ids; `engine.formats.vocabulary.Vocabulary` is one."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        ...


class HuggingFaceTokenizer:
    """The tokenizer of a checkpoint that was not trained here, with its special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes the tokenizer over; it no longer pads or truncates."""
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # user text is never a control token

    @classmethod
    def of_checkpoint(cls, name: str) -> "HuggingFaceTokenizer":
        """Reads the tokenizer of a checkpoint: local directory or hub id.

        Raises:
            ValueError: it has none that can be saved as tokenizer.json.
        """
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
        if not tokenizer.is_fast:
            raise ValueError(f"{name}: has no tokenizer.json, which the engine needs")
        return cls(tokenizer.backend_tokenizer)

    def save(self, path: Path) -> None:
        """Writes a tokenizer.json file."""
        self._tokenizer.save(str(path))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, special tokens included."""
        ids: list[list[int]] = []
        for start in range(0, len(texts), _BATCH):  # an encoding takes a kilobyte
            ids += [
                e.ids for e in self._tokenizer.encode_batch(list(texts[start : start + _BATCH]))
            ]
        return ids


def encoder_tokenizer(run: Path) -> Path:
    """Returns the file of the tokenizer that a run's encoder reads, its own or that of all models.

    Its name is that of the same file in a bundle.
    """
    own = run / "encoder" / TOKENIZER_FILE
    return own if own.is_file() else run / "tokenizer.json"


class Encoder(nn.Module):
    """A bidirectional transformer whose mean-pooled, normalised output embeds a query."""

    def __init__(self, backbone: PreTrainedModel, tokenizer: BatchTokenizer) -> None:
        """Wraps a BERT-like backbone; queries are cut where the engine cuts them."""
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self._max_tokens = min(backbone.config.max_position_embeddings, MAX_ENCODER_TOKENS)

    @classmethod
    def load(cls, run: Path) -> "Encoder":
        """Reads the encoder of a run directory, ready to embed (no dropout)."""
        backbone = _backbone(run / "encoder")
        path = encoder_tokenizer(run)
        tokenizer: BatchTokenizer = (
            HuggingFaceTokenizer(read_tokenizer_file(path))
            if path.name == TOKENIZER_FILE
            else Vocabulary.load(path)
        )
        return cls(backbone, tokenizer).eval()

    @classmethod
    def of_checkpoint(cls, name: str) -> "Encoder":
        """Reads an encoder that was not trained here: local directory or hub id.

        Raises:
            ValueError: it cannot be loaded, or reads fewer tokens than the engine gives it.
        """
        try:
            backbone = _backbone(name)
            tokenizer = HuggingFaceTokenizer.of_checkpoint(name)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0].split(". ")[0]  # the rest lists all known models
            raise ValueError(
                f"checkpoint {name} cannot be loaded: {reason}; give a hub id (online) or a "
                "directory"
            ) from None
        if (num_positions := backbone.config.max_position_embeddings) < MAX_ENCODER_TOKENS:
            raise ValueError(
                f"checkpoint {name} reads up to {num_positions} tokens, must be at least "
                f"{MAX_ENCODER_TOKENS}"
            )
        return cls(backbone, tokenizer)

    @property
    def embedding_dim(self) -> int:
        """The size D of an embedding."""
        return self.backbone.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns float32 (B, D) of unit norm for int64 (B, T) ids and mask."""
        hidden_BTD = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state.float()
        mask_BT1 = attention_mask[:, :, None].float()
        mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        return F.normalize(mean_BD, dim=-1)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, cut to 64, or the length of the position table.

        A text without any token (the empty text) becomes the padding token.
        """
        return [ids[: self._max_tokens] or [0] for ids in self.tokenizer.encode_batch(texts)]

    @torch.no_grad()
    def embed(
        self,
        texts: Sequence[str],
        batch_size: int = 512,
        report: Callable[[str], None] = lambda _: None,
    ) -> NDArray[np.float32]:
        """Returns float32 (Q, D) of unit norm, row i for text i.

        Computes in batches of similar length. Switches dropout off while it runs. `report` is
        called with lines of progress.
        """
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        ids = self.token_ids(texts)
        order = np.argsort([len(i) for i in ids], kind="stable")
        embeddings = np.empty((len(texts), self.embedding_dim), np.float32)
        for number, start in enumerate(range(0, len(order), batch_size), 1):
            rows = order[start : start + batch_size]
            batch = {k: v.to(device) for k, v in padded([ids[r] for r in rows]).items()}
            embeddings[rows] = self(**batch).cpu().numpy()
            if number % _BATCHES_A_LINE == 0:
                report(f"{start + len(rows)} of {len(texts)} queries embedded")
        self.train(was_training)
        return embeddings


def _backbone(name: str | Path) -> PreTrainedModel:
    """Loads a transformer without a pooling layer.

    Raises:
        ValueError: its weights cannot be read.
        OSError: there is no such checkpoint.
    """
    try:
        try:
            return AutoModel.from_pretrained(name, add_pooling_layer=False)
        except TypeError:  # DistilBERT and others have no such layer, nor the argument
            return AutoModel.from_pretrained(name)
    except SafetensorError as error:
        raise ValueError(f"{name}: weights cannot be read: {error}") from error


def padded(ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Returns `input_ids` and `attention_mask`, int64 (B, T), right padded with id 0."""
    length = max(len(i) for i in ids)
    rows = [[*i, *([0] * (length - len(i)))] for i in ids]
    masks = [[1] * len(i) + [0] * (length - len(i)) for i in ids]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
