"""Which calls are refused, on a manual clock, with a queue that nobody sees but the probe."""

import random

import pytest

from engine.serving.overload import QueueProbe, Shedding

BUDGET_S = 0.05
ANSWER_S, REFUSAL_S = 1 / 2000, 1 / 6000
TICK_S = 0.05


class Traffic:
    """Calls at a steady rate, and one probe at a time among them, first come first served."""

    def __init__(self, clock) -> None:
        self.clock = clock
        self.shedding = Shedding(BUDGET_S, clock, random.Random(0))
        self.num_answered = 0
        self.longest_wait_s = 0.0
        self._next_tick_s = 0.0
        self._probe_s: float | None = None  # when it was sent

    def run(self, rate_rps: float, duration_s: float, *, pause_s: float = 0.0) -> None:
        """Serves all calls that come in that time; for the first `pause_s` nobody does."""
        call_s = begun_s = self.clock.now_s()
        self.clock.advance(pause_s)
        while call_s < begun_s + duration_s:
            now_s = self.clock.now_s()
            if now_s >= self._next_tick_s:
                self._next_tick_s = now_s + TICK_S
                if self._probe_s is None:
                    self._probe_s = now_s
                else:
                    self.shedding.waits(now_s - self._probe_s)
            if self._probe_s is not None and self._probe_s <= call_s:
                self.shedding.waited(now_s - self._probe_s)
                self._probe_s = None
            elif call_s > now_s:
                self.clock.advance(min(call_s, self._next_tick_s) - now_s)
            else:
                self._serve(now_s - call_s)
                call_s += 1 / rate_rps

    def _serve(self, wait_s: float) -> None:
        is_refused = self.shedding.refuses()
        self.clock.advance(REFUSAL_S if is_refused else ANSWER_S)
        if not is_refused:
            self.num_answered += 1
            self.longest_wait_s = max(self.longest_wait_s, wait_s)


@pytest.fixture
def traffic(clock) -> Traffic:
    return Traffic(clock)


def test_nothing_is_refused_while_all_can_be_answered(traffic):
    traffic.run(1900, 20)
    assert traffic.shedding.num_refused == 0


@pytest.mark.parametrize("rate_rps", [2500, 4000])
def test_beyond_calls_are_refused_and_what_is_answered_has_not_waited_long(traffic, rate_rps):
    traffic.run(1000, 1)
    traffic.run(rate_rps, 4)  # until it has found its share
    traffic.longest_wait_s, traffic.num_answered = 0.0, 0
    traffic.run(rate_rps, 10)
    assert traffic.longest_wait_s < 3 * BUDGET_S
    possible = (1 - rate_rps * REFUSAL_S) / (ANSWER_S - REFUSAL_S) * 10
    assert 0.6 * possible < traffic.num_answered < 1.05 * possible


def test_without_refusals_all_would_wait_for_longer_and_longer(traffic, monkeypatch):
    monkeypatch.setattr(traffic.shedding, "waited", lambda wait_s: None)
    traffic.run(2500, 10)
    assert traffic.longest_wait_s > 2


def test_a_second_after_a_burst_nothing_is_refused(traffic):
    traffic.run(4000, 5)
    traffic.run(1000, 1)
    refused = traffic.shedding.num_refused
    traffic.run(1000, 5)
    assert traffic.shedding.num_refused == refused > 0


def test_calls_that_waited_for_a_pause_are_answered(traffic):
    for _ in range(10):
        traffic.run(1000, 2, pause_s=0.25)
    assert traffic.shedding.num_refused == 0


def test_nothing_is_refused_once_the_probe_is_given_up(traffic):
    traffic.run(4000, 3)
    traffic.shedding.reset()
    assert not any(traffic.shedding.refuses() for _ in range(100))


@pytest.mark.parametrize("budget_s", [0.05, 1.0, 10.0, 60.0])
async def test_a_probe_waits_for_longer_than_a_long_wait(clock, budget_s):
    shedding = Shedding(budget_s, clock, random.Random(0))
    probe = QueueProbe(shedding, clock)
    given_up_s = 0.0

    async def send(request: bytes, **options) -> None:
        nonlocal given_up_s
        given_up_s = options["timeout"]

    await probe._sent(send, "secret")  # pyright: ignore[reportArgumentType]  # it is awaited only
    for _ in range(20):  # such waits, one after another
        shedding.waits(given_up_s)
        clock.advance(given_up_s)
    assert all(shedding.refuses() for _ in range(100))


def test_only_its_own_probe_counts(clock):
    waits: list[float] = []

    class Noting(Shedding):
        def waited(self, wait_s: float) -> None:
            waits.append(wait_s)

    shedding = Noting(BUDGET_S, clock)
    QueueProbe(shedding, clock).arrived([("queryrec-probe", ""), ("queryrec-probe", "forged")])
    assert waits == []


def test_the_last_wait_is_told(clock):
    shedding = Shedding(BUDGET_S, clock)
    for wait_s in (0.001, 0.03):
        shedding.waited(wait_s)
        assert shedding.wait_s == wait_s
    shedding.waits(0.7)  # and nobody has looked at it yet
    assert shedding.wait_s == 0.7
    shedding.reset()
    assert shedding.wait_s == 0
