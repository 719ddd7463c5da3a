"""A character n-gram language model that completes prefixes: what a small model must beat.

Interpolated Kneser-Ney smoothing (Kneser and Ney, 1995; in the form of Chen and Goodman, 1999,
equation 19). For histories h of n - 1 characters, and those that begin a text, C(h c) is how often
c followed h; for shorter ones, how many different characters came before h c. With T(h) the number
of different characters that followed,

    p(c | h) = max(C(h c) - D, 0) / C(h) + D T(h) / C(h) p(c | h'),

h' being h without its first character, down to the uniform distribution over the alphabet and the
end. D = n1 / (n1 + 2 n2) for each length of h, n1 and n2 the numbers of counts of one and of two.
Completion is a beam search for the most probable texts. Knows nothing of words or of where the
texts come from.
"""

# A characters of the alphabet and the end, L live beams
from collections import Counter, defaultdict
from collections.abc import Iterable
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
    counts: Floats


class CharModel:
    """The model; see the module's text."""

    def __init__(self, texts: Iterable[str], *, order: int = 7, beam: int = 20) -> None:
        """Counts the texts, each once.

        Args:
            texts: what to complete to.
            order: n, the character predicted included.
            beam: hypotheses kept a step.

        Raises:
            ValueError: there is no text.
        """
        texts = {*texts}
        if not texts:
            raise ValueError("a character model needs at least one text")
        self._order, self._beam = order, beam
        self.alphabet = [*sorted({c for text in texts for c in text}), _END]
        place_of = {c: i for i, c in enumerate(self.alphabet)}
        times: dict[str, Counter[int]] = defaultdict(Counter)
        before: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for text in sorted(texts):
            padded = _START + text + _END
            for at in range(1, len(padded)):
                place = place_of[padded[at]]
                for length in range(min(at, order - 1) + 1):
                    history = padded[at - length : at]
                    if length == order - 1 or length == at:
                        times[history][place] += 1
                    else:
                        before[history][place].add(padded[at - length - 1])
        counts: dict[str, dict[int, int]] = {h: dict(after) for h, after in times.items()}
        for history, after in before.items():
            counts[history] = {place: len(found) for place, found in after.items()}
        self._discounts = _discounts(counts, order)
        self._followers = {
            history: _Followers(np.array([*after]), np.array([*after.values()], np.float64))
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
        for length in range(len(history) + 1):
            followers = self._followers.get(history[len(history) - length :])
            if followers is None:
                break  # nor was a longer one seen
            discount, total = self._discounts[length], followers.counts.sum()
            p_A *= discount * len(followers.places) / total
            p_A[followers.places] += np.maximum(followers.counts - discount, 0) / total
        return np.log(p_A)


def _discounts(counts: dict[str, dict[int, int]], order: int) -> list[float]:
    """Returns D for each length of a history."""
    ones, twos = [0] * order, [0] * order
    for history, after in counts.items():
        ones[len(history)] += sum(n == 1 for n in after.values())
        twos[len(history)] += sum(n == 2 for n in after.values())
    # Without counts of one the estimate is 0, and characters not seen would be impossible.
    return [n1 / (n1 + 2 * n2) if n1 else 0.5 for n1, n2 in zip(ones, twos, strict=True)]
