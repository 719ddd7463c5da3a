"""Which calls are refused, on a manual clock, with a queue that nobody sees but the probe."""

import random

import pytest

from engine.scheduling.deadline import MonotonicClock
from engine.serving.overload import QueueProbe, Shedding

BUDGET_S = 0.05
ANSWER_S, REFUSAL_S = 1 / 2000, 1 / 6000


class Traffic:
    """Calls at a steady rate, a probe every 50 ms among them, first come first served."""

    def __init__(self, clock) -> None:
        self.clock = clock
        self.shedding = Shedding(BUDGET_S, random.Random(0))
        self.num_answered = 0
        self.longest_wait_s = 0.0

    def run(self, rate_rps: float, duration_s: float) -> None:
        """Lets time pass; calls that have come by then are served, too."""
        begun_s = self.clock.now_s()
        calls = [(begun_s + i / rate_rps, False) for i in range(int(rate_rps * duration_s))]
        probes = [(begun_s + i / 20, True) for i in range(int(20 * duration_s))]
        for arrived_s, is_probe in sorted(calls + probes):
            self.clock.advance(max(0.0, arrived_s - self.clock.now_s()))
            wait_s = self.clock.now_s() - arrived_s
            if is_probe:
                self.shedding.waited(wait_s)
                continue
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
    traffic.run(rate_rps, 3)  # until it has found its share
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


def test_pauses_refuse_nothing(traffic, clock):
    for _ in range(10):
        clock.advance(0.12)  # nobody is served
        traffic.shedding.waited(0.12)
        traffic.run(1000, 0.5)
    assert traffic.shedding.num_refused == 0


def test_only_probes_of_its_own_count(clock):
    waits: list[float] = []
    shedding = Shedding(BUDGET_S)
    shedding.waited = waits.append
    QueueProbe(shedding, MonotonicClock()).arrived([("queryrec-probe", "forged"), ("a", "b")])
    assert waits == []
