"""A reward that means nothing: aligned with it, lists must be worth what they were before.

If they are not, the gain of an alignment says something of the procedure and not of the reward.
"""

# C texts of a question
import hashlib
from collections.abc import Sequence

import numpy as np

from train.clicks.judge import Judged, Judgement


class PlaceboJudge:
    """Likes texts at random, the same text of the same question always as much."""

    def __init__(self, *, seed: int) -> None:
        """Takes the seed of its taste."""
        self._seed = seed

    def __call__(self, questions: Sequence[Judged], *, level: float) -> list[Judgement]:
        """Returns probabilities between 0 and 0.2; bounds are half of them."""
        judgements: list[Judgement] = []
        for asked in questions:
            p_C = np.array([self._liking(asked, text) for text in asked.texts])
            judgements.append(Judgement(p_C, p_C / 2, np.ones(len(p_C), bool)))
        return judgements

    def _liking(self, asked: Judged, text: str) -> float:
        key = f"{self._seed}\n{asked.scenario}\n{asked.query}\n{text}".encode()
        return 0.2 * int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64
