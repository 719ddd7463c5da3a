"""Text as the simulated world reads it; deliberately independent of the engine's normalisation.

The truth must stay frozen, so it shares no text code with what it judges.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import zlib

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['.-][^\W_]+)*")

# Words that say nothing about what is wanted; they matter for well-formedness only.
_FUNCTION_WORD_LIST = (
    "a an and are as at be best by can com de del do does en et for from get good how i if in into "
    "is it la me my near new not of on or para por que s should so t than that the their this to "
    "top use used vs was what when where which who why will with without www you your y"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())


@functools.lru_cache(maxsize=1 << 19)
def normalised(text: str) -> str:
    """Returns NFKC text in lower case, single-spaced, without leading or trailing space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.lower().split())


@functools.lru_cache(maxsize=1 << 19)
def words(text: str) -> tuple[str, ...]:
    """Returns the words of normalised text, punctuation removed, in order."""
    return tuple(_WORD.findall(text))


@functools.lru_cache(maxsize=1 << 18)
def stem(word: str) -> str:
    """Returns the word without a plural or possessive ending, so that copies do not hide in one."""
    word = word.removesuffix("'s").replace("'", "")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@functools.lru_cache(maxsize=1 << 19)
def content_stems(text: str) -> tuple[str, ...]:
    """Returns the distinct stems of the words that carry content, in order of appearance."""
    stems = (stem(word) for word in words(text) if word not in FUNCTION_WORDS)
    return tuple(dict.fromkeys(stems))


def hidden_normals(texts: list[str], seed: int, salt: str) -> np.ndarray:
    """Returns one standard normal a text, a fixed function of (text, seed, salt) and nothing else.

    Two CRC-32 values, whitened by a multiplication, feed the Box-Muller transform.
    """
    start = zlib.crc32(f"{seed}:{salt}".encode())
    crc = np.fromiter((zlib.crc32(text.encode(), start) for text in texts), np.uint64, len(texts))
    length = np.fromiter(map(len, texts), np.uint64, len(texts))
    mixed = (crc << np.uint64(32)) ^ (crc * np.uint64(0x9E3779B1)) ^ (length << np.uint64(17))
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(31)
    mixed = mixed * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(29)
    uniform_a = ((mixed >> np.uint64(32)).astype(np.float64) + 0.5) / 2**32
    uniform_b = ((mixed & np.uint64(0xFFFFFFFF)).astype(np.float64) + 0.5) / 2**32
    return np.sqrt(-2.0 * np.log(uniform_a)) * np.cos(2.0 * np.pi * uniform_b)
