"""Which texts may be used at all: normalised, free of personal data, not unsafe.

Works on distinct texts, each looked at once. Knows nothing of how many users searched a text;
that is counted later, over what this leaves.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from engine.formats.blocklist import Blocklist, read_phrases
from engine.formats.text import MAX_QUERY_BYTES, has_control_characters, normalise, normalise_prefix
from train.mining.personal import kind_of_personal_data

CLEAN_SCHEMA = pa.schema(
    {
        "raw": pa.string(),
        "text": pa.string(),  # null where the text must not be used
        "prefix": pa.string(),  # the text as a typed prefix
        "reason": pa.string(),  # why `text` is null
    }
)


class Verdict(NamedTuple):
    """What becomes of a raw text: a normalised text, or the reason why there is none."""

    text: str | None
    reason: str | None


class TextFilter:
    """Normalises texts and refuses those that must not be used. Thread-safe."""

    def __init__(self, unsafe_words: Iterable[str] = ()) -> None:
        """Takes words or phrases as a blocklist does."""
        self._unsafe = Blocklist(unsafe_words)

    def __call__(self, raw: str) -> Verdict:
        """Returns the normalised text, or why it is refused."""
        text = normalise(raw)
        if not text:
            return Verdict(None, "empty")
        if len(text.encode("utf-8", errors="replace")) > MAX_QUERY_BYTES:
            return Verdict(None, "too_long")
        if not text.isprintable() and has_control_characters(text):
            return Verdict(None, "control_characters")
        if kind := kind_of_personal_data(text):
            return Verdict(None, kind)
        if self._unsafe.blocks(text):
            return Verdict(None, "unsafe_words")
        return Verdict(text, None)

    def clean(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Returns, for batches of raw texts (first column), rows of `CLEAN_SCHEMA`."""
        for batch in batches:
            raws = [raw for raw in batch.column(0).to_pylist() if raw is not None]
            verdicts = [self(raw) for raw in raws]
            prefixes = [
                None if v.text is None else normalise_prefix(raw)
                for raw, v in zip(raws, verdicts, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(raws, pa.string()),
                    pa.array([v.text for v in verdicts], pa.string()),
                    pa.array(prefixes, pa.string()),
                    pa.array([v.reason for v in verdicts], pa.string()),
                ],
                schema=CLEAN_SCHEMA,
            )


def read_unsafe_words(path: str) -> list[str]:
    """Returns the words of a file as `read_phrases` does; raises as it does."""
    return read_phrases(path, "mine.unsafe_words")
