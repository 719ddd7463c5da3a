"""The search for the highest rate that a server holds. Knows nothing of servers.

Short runs double the rate and halve the interval; long ones then step by 5 % to the highest rate
that holds. A run that did not hold is made again, once, if the load generator was late itself: it
may be that, not the server, which was too slow. Steps down are not: the next is nearly the same.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from benchmarks.load.caller import Outcome
from benchmarks.load.percentiles import percentile, rank
from engine.scheduling.stages import Effort

RANGE_RPS = (0.25, 20_000.0)
_FINE = 1.05  # step between confirmations
_COARSE = 1.1  # ratio of the interval at which short runs end


class Trial(NamedTuple):
    """One run at one rate."""

    rate_rps: float
    outcomes: list[Outcome]

    @property
    def num_errors(self) -> int:
        """Requests without an answer."""
        return sum(bool(o.error) for o in self.outcomes)

    @property
    def errors(self) -> dict[str, int]:
        """How often each reason was given for no answer."""
        return dict(Counter(o.error for o in self.outcomes if o.error))

    @property
    def num_full(self) -> int:
        """Requests whose answer left out nothing that the bundle has."""
        return sum(o.effort == Effort.FULL for o in self.outcomes)

    @property
    def p99_ms(self) -> float:
        """Latency that 99 % of requests kept; infinite if more failed."""
        values = [math.inf if o.error else o.latency_s * 1000 for o in self.outcomes]
        return sorted(values)[rank(len(values), 99) - 1] if values else math.inf

    @property
    def send_lag_p99_ms(self) -> float:
        """How late 99 % of requests were sent at most."""
        return percentile([o.lag_s * 1000 for o in self.outcomes], 99) or 0.0

    def num_in_budget(self, budget_ms: float) -> int:
        """Requests that were answered in time."""
        return sum(not o.error and o.latency_s * 1000 <= budget_ms for o in self.outcomes)


Holds = Callable[[Trial], bool]
RunTrial = Callable[[float, float], Trial]  # of a rate and seconds
Search = Generator[tuple[float, float], Trial, Trial | None]


def in_turns(searches: Sequence[tuple[Search, RunTrial]]) -> list[Trial | None]:
    """Returns what searches find; they take turns, so that a slow minute hits all of them."""
    found: dict[int, Trial | None] = {}
    wanted = {i: next(search) for i, (search, _) in enumerate(searches)}
    while wanted:
        for i, (rate_rps, duration_s) in list(wanted.items()):
            search, trial = searches[i]
            try:
                wanted[i] = search.send(trial(rate_rps, duration_s))
            except StopIteration as done:
                found[i] = done.value
                del wanted[i]
    return [found[i] for i in range(len(searches))]


def search(
    holds: Holds,
    *,
    start_rps: float,
    probe_s: float,
    confirm_s: float,
    late_ms: float = math.inf,
) -> Search:
    """Asks for runs; returns the one at the highest rate that holds for `confirm_s`, if any does.

    Args:
        holds: Whether the server held it.
        start_rps: Where to look first.
        probe_s: Of the short runs.
        confirm_s: Of the runs that decide.
        late_ms: `send_lag_p99_ms` above which a run that did not hold is made again.
    """

    def asked(rate_rps: float, duration_s: float) -> Generator[tuple[float, float], Trial, Trial]:
        trial = yield rate_rps, duration_s
        if trial.send_lag_p99_ms > late_ms and not holds(trial):
            trial = yield rate_rps, duration_s
        return trial

    lowest, highest = RANGE_RPS
    low = high = start_rps
    if holds((yield from asked(low, probe_s))):
        while (high := low * 2) <= highest and holds((yield from asked(high, probe_s))):
            low = high
    else:
        while (low := high / 2) >= lowest and not holds((yield from asked(low, probe_s))):
            high = low
    while high / low > _COARSE:
        middle = math.sqrt(low * high)
        if holds((yield from asked(middle, probe_s))):
            low = middle
        else:
            high = middle
    confirmed = yield from asked(low, confirm_s)
    while not holds(confirmed):
        if (low := low / _FINE) < lowest:
            return None
        confirmed = yield low, confirm_s
        if holds(confirmed):
            return confirmed
    while holds(further := (yield from asked(confirmed.rate_rps * _FINE, confirm_s))):
        confirmed = further
    return confirmed
