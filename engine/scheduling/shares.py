"""Equal shares of one worker: flows take turns by the time that each has had.

Start-time fair queueing (Goyal, Vin and Cheng 1996) with equal weights. Knows nothing of what runs
or how urgent it is.
"""

import heapq
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Shares:
    """What flows have had. Time in which a flow wanted nothing is not made up for."""

    def __init__(self) -> None:
        """Starts with nothing had."""
        self._had_s: dict[Hashable, float] = {}
        self._now_s = 0.0  # what the flow served last had had before: where others come in

    def charge(self, flow: Hashable, cost_s: float) -> None:
        """Notes that a flow gets something."""
        self._now_s = max(self._now_s, self._place(flow))
        self._had_s[flow] = self._place(flow) + cost_s

    def in_turns(self, items: Sequence[tuple[Hashable, float, T]]) -> Iterator[T]:
        """Yields items in the order in which they are served.

        Args:
            items: (flow, seconds, item); a flow's own items stay in their order, and of flows
                that have had the same, the one whose item comes first is first.
        """
        queues: dict[Hashable, deque[tuple[int, float, T]]] = {}
        for number, (flow, cost_s, item) in enumerate(items):
            queues.setdefault(flow, deque()).append((number, cost_s, item))
        heap = [(self._place(flow), queue[0][0], flow) for flow, queue in queues.items()]
        heapq.heapify(heap)
        while heap:
            place_s, _, flow = heapq.heappop(heap)
            _, cost_s, item = queues[flow].popleft()
            yield item
            if queues[flow]:
                heapq.heappush(heap, (place_s + cost_s, queues[flow][0][0], flow))

    def lead_s(self, flow: Hashable, other: Hashable) -> float:
        """Returns how much more `other` has had than `flow`, as far as it counts."""
        return self._place(other) - self._place(flow)

    def _place(self, flow: Hashable) -> float:
        return max(self._now_s, self._had_s.get(flow, 0.0))
