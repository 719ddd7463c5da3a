"""Which texts may be used at all: normalised, free of personal data, not unsafe.

Works on distinct texts, each looked at once. Knows nothing of how many users searched a text;
that is counted later, over what this leaves.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from engine.formats.text import MAX_QUERY_BYTES, has_control_characters, normalise

_EMAIL = re.compile(r"\S+@\S+\.\w")
# 9 digits and more with the separators people type, e.g. +1 (212) 555-0143, 030 12 34 56 78. Some
# harmless lists of numbers go, too.
_PHONE = re.compile(r"(?<!\d)\+?\d(?:[ ().\-/]{0,2}\d){8,}(?!\d)")
_NATIONAL_ID = re.compile(r"(?<!\d)\d{3}[ -]\d{2}[ -]\d{4}(?!\d)")
_LONG_NUMBER = re.compile(r"\d{8,}")  # accounts, orders, cards

CLEAN_SCHEMA = pa.schema(
    {
        "raw": pa.string(),
        "text": pa.string(),  # null where the text must not be used
        "prefix": pa.string(),  # the text as a typed prefix: may end in a space
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
        """Takes words or phrases; a final `*` stands for any end of the word."""
        patterns = [
            re.escape(w[:-1]) + r"\w*" if w.endswith("*") else re.escape(w)
            for w in map(normalise, unsafe_words)
            if w.strip("*")
        ]
        self._unsafe = re.compile(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)") if patterns else None

    def __call__(self, raw: str) -> Verdict:
        """Returns the normalised text, or why it is refused."""
        text = normalise(raw)
        if not text:
            return Verdict(None, "empty")
        if len(text.encode("utf-8", errors="replace")) > MAX_QUERY_BYTES:
            return Verdict(None, "too_long")
        if not text.isprintable() and has_control_characters(text):
            return Verdict(None, "control_characters")
        if "@" in text and _EMAIL.search(text):
            return Verdict(None, "email")
        if _PHONE.search(text) or _NATIONAL_ID.search(text) or _LONG_NUMBER.search(text):
            return Verdict(None, "long_number")
        if self._unsafe is not None and self._unsafe.search(text):
            return Verdict(None, "unsafe_words")
        return Verdict(text, None)

    def clean(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Returns, for batches of raw texts (first column), rows of `CLEAN_SCHEMA`."""
        for batch in batches:
            raws = [raw for raw in batch.column(0).to_pylist() if raw is not None]
            verdicts = [self(raw) for raw in raws]
            prefixes = [
                v.text + " " if v.text and raw[-1:].isspace() else v.text
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
    """Returns the words of a file, one a line; `#` starts a comment. No path, no words.

    Raises:
        ValueError: the file cannot be read.
    """
    if not path:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"mine.unsafe_words: {path} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
