"""Keeps the pauses of Python's garbage collector short.

A full collection stops the process and looks at every container object there is, a microsecond
each: at what was loaded, and at caches, which can be hundreds of thousands of objects. What is set
aside is not looked at any more. Reference counts still free it; only what is in a cycle of
references stays for ever, so objects that come and go with a release may not be in one.
"""

import gc
import time
from collections.abc import Callable
from typing import Self

_MAX_PAUSE_S = 0.005


def set_aside() -> None:
    """Has the collector never look again at what there is now."""
    gc.freeze()


class ShortPauses:
    """While open, what outlives a full collection that took too long is set aside."""

    def __init__(
        self,
        max_pause_s: float = _MAX_PAUSE_S,
        *,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Does nothing until opened.

        Args:
            max_pause_s: How long a full collection may take.
            clock: Seconds that the thread which collects has computed.
        """
        self._max_pause_s = max_pause_s
        self._clock = clock
        self._started_s = 0.0

    def __enter__(self) -> Self:
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < 2:
            return
        if phase == "start":
            self._started_s = self._clock()
        elif self._clock() - self._started_s > self._max_pause_s:
            set_aside()
