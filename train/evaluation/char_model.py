"""A character n-gram language model that completes prefixes: what a small model must beat.

Interpolated Witten-Bell smoothing (Witten and Bell, 1991; form of Chen and Goodman, 1999, section
2.6): with C(h) the weight of what followed the history h, and T(h) how many different characters
did,

    p(c | h) = (C(h c) + T(h) p(c | h')) / (C(h) + T(h)),   h' = h without its first character,

down to the uniform distribution over the alphabet and the end. Completion is a beam search for the
most probable texts. Knows nothing of words or of where the texts come from.
"""

# A characters of the alphabet and the end, L live beams
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_START, _END = "\x02", "\x03"  # normalised queries hold no control characters
_MAX_CHARACTERS = 80  # of a completion
Floats = NDArray[np.float64]


class _Followers(NamedTuple):
    """What followed one history."""

    places: NDArray[np.int64]  # in the alphabet
    weights: Floats


class CharModel:
    """The model; see the module's text."""

    def __init__(self, weights: Mapping[str, float], *, order: int = 7, beam: int = 20) -> None:
        """Counts the texts.

        Args:
            weights: text -> its weight, above 0; 1 is one observation.
            order: n, the character predicted included.
            beam: hypotheses kept a step.

        Raises:
            ValueError: there is no text.
        """
        if not weights:
            raise ValueError("a character model needs at least one text")
        self._order, self._beam = order, beam
        self.alphabet = [*sorted({c for text in weights for c in text}), _END]
        place_of = {c: i for i, c in enumerate(self.alphabet)}
        counts: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for text, weight in weights.items():
            padded = _START + text + _END
            for at in range(1, len(padded)):
                place = place_of[padded[at]]
                for length in range(min(at, order - 1) + 1):
                    counts[padded[at - length : at]][place] += weight
        self._followers = {
            history: _Followers(np.array([*after], np.int64), np.array([*after.values()]))
            for history, after in counts.items()
        }
        self._log_next = lru_cache(100_000)(self._log_probabilities)

    def log_probabilities(self, text: str) -> Floats:
        """Returns float64 (A): log p of each character of `alphabet` after the beginning `text`."""
        history = (_START + text)[-(self._order - 1) :] if self._order > 1 else ""
        return self._log_next(history)

    def complete(self, prefix: str, num: int) -> list[str]:
        """Returns up to `num` texts that start with `prefix`, longer than it, most probable first.

        What is left out of the beam is lost, so the order is that of the texts found.
        """
        live, live_L = [prefix], np.zeros(1)
        found: list[tuple[float, str]] = []
        for _ in range(_MAX_CHARACTERS):
            log_LA = live_L[:, None] + np.stack([self.log_probabilities(t) for t in live])
            ended = zip(log_LA[:, -1].tolist(), live, strict=True)
            found += [(-log_p, text) for log_p, text in ended if text != prefix]
            found = sorted(found)[:num]
            flat = log_LA[:, :-1].ravel()
            best = np.argsort(-flat, kind="stable")[: self._beam]
            if len(found) == num:  # no longer text can be more probable than its beginning
                best = best[flat[best] > -found[-1][0]]
            if not len(best):
                break
            rows, places = np.divmod(best, len(self.alphabet) - 1)
            live = [live[r] + self.alphabet[p] for r, p in zip(rows, places, strict=True)]
            live_L = flat[best]
        return [text for _, text in found]

    def _log_probabilities(self, history: str) -> Floats:
        p_A = np.full(len(self.alphabet), 1 / len(self.alphabet))
        for start in range(len(history), -1, -1):  # the longer the history, the later
            followers = self._followers.get(history[start:])
            if followers is None:
                break  # nor was a longer one seen
            num_types = len(followers.places)
            p_A *= num_types
            p_A[followers.places] += followers.weights
            p_A /= followers.weights.sum() + num_types
        return np.log(p_A)
