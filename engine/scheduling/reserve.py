"""How much of a budget is not for models: the way back, and what comes after the last model.

Under load, answers wait for the event loop when their last model run ends or is given up, and had
waited for it before, when the request had arrived and nobody had seen it yet. That time is learnt,
as costs of models are. Knows nothing of stages.
"""

from engine.scheduling.deadline import Clock
from engine.scheduling.window import Window

_QUANTILE = 1.0  # a late answer is worse than a lesser one
_SAMPLES = 256
_MAX_SHARE = 0.2  # of a budget: one long pause must not price out all models for seconds


class Reserve:
    """Learns the time between the last model run of an answer and its end. Not thread-safe."""

    def __init__(self, least_s: float, clock: Clock) -> None:
        """Starts with the least, which is kept for the way back whatever is learnt."""
        self._least_s = least_s
        self._clock = clock
        self._tails = Window(_QUANTILE, _SAMPLES)

    def ended(self, ready_s: float) -> None:
        """Notes what passed since an answer had all that it needed from models.

        To be called when the event loop turns to something new after the answer: what it does
        until then, a request that arrives meanwhile waits for.
        """
        now_s = self._clock.now_s()
        self._tails.add(max(0.0, now_s - ready_s), now_s)

    def of(self, left_s: float) -> float:
        """Returns the seconds to keep of those that are left of a budget."""
        learnt_s = self._tails.estimate_s(self._clock.now_s())
        return self._least_s + min(learnt_s, _MAX_SHARE * max(0.0, left_s))
