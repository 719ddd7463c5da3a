"""Plays traffic against the engine on simulated time: what policies do in an hour, in seconds.

The pipeline, planner, cost model, batcher and worker are the engine's own. Only three things are
simulated: time, which jumps to the next event; how long a model run takes, by a formula fitted to
recorded runs; and what models write, which is arbitrary. The event loop's own work takes no time.
"""

import asyncio
import dataclasses
import random
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from engine.answering.answer import Answer, Question
from engine.answering.pipeline import Pipeline
from engine.config import Config
from engine.errors import RequestError
from engine.execution.bundle import Bundle
from engine.execution.models import GenerateRow, ScoreRow, Sequences
from engine.execution.runtime import Runtime
from engine.execution.warmup import warm_up
from engine.formats.vocabulary import FIRST_TEXT_ID
from engine.scheduling.costs import Work
from engine.scheduling.deadline import Deadline
from engine.scheduling.stages import Left, Omission, Probe, Stage, Why

R = TypeVar("R")

PLANS = ("full", "generated less", "log, ranked", "log, ranked less", "log, unranked", "look-up")
"""Kinds of answers, best first."""


class _JumpingSelector(selectors.DefaultSelector):
    """Moves time on instead of waiting."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout is not None:
            self.now_s += timeout
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while it works and jumps when it would wait.

    It is a `Clock`, too. Work on other threads takes no time in it.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def now_s(self) -> float:
        return self._jumping.now_s


def simulate(main: Callable[[SimulatedLoop], Coroutine[Any, Any, R]]) -> R:
    """Returns what `main` returns, run on a simulated loop of its own."""
    loop = SimulatedLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(loop))


def run_s(work: Work, num_rows: int) -> float:
    """Returns the seconds that a model run takes.

    Fitted to the warm-up of a `small` int8 bundle on two cores: within a third of each of its 36
    kinds and sizes of runs.
    """
    if work.stage is Stage.ENCODE:
        return 0.0040 + 0.0012 * num_rows
    if work.stage is Stage.GENERATE:
        num_slots, num_tokens = work.variant
        return 0.0040 + num_rows * (0.0050 + 0.00022 * num_slots * num_tokens)
    return 0.0015 + num_rows * (0.0015 + 0.00035 * work.variant[0])


class Machine:
    """Stands in for `engine.execution.runtime`: one run at a time, each for as long as it takes."""

    def __init__(
        self,
        clock: SimulatedLoop,
        seed: int = 0,
        *,
        slowdown: Callable[[Work, float], float] = lambda work, now_s: 1.0,
        stalls_s: Iterable[tuple[float, float]] = (),
        failure_rate: float = 0.0,
    ) -> None:
        """Starts at zero.

        Args:
            clock: Whose time passes.
            seed: Of the noise of run times (log-normal, 8 %) and of failures.
            slowdown: Times as long that a kind of work takes at a moment.
            stalls_s: (begin, seconds) in which nothing moves.
            failure_rate: Share of runs that raise.
        """
        self.runs: list[tuple[float, Work, list[Any]]] = []  # (begin, work, rows)
        self.begin_s = float("inf")  # of the traffic, after warming up
        self.failed_rows: list[Any] = []
        self._clock = clock
        self._random = random.Random(f"machine {seed}")
        self._slowdown = slowdown
        self._stalls_s = tuple(stalls_s)
        self._failure_rate = failure_rate
        self._lock = asyncio.Lock()

    def run(self, function: Callable[..., R], work: Work, rows: list[Any]) -> asyncio.Future[R]:
        """Returns what the function's result will be, after the time that the run takes."""
        return asyncio.ensure_future(self._run(function, work, rows))

    async def _run(self, function: Callable[..., R], work: Work, rows: list[Any]) -> R:
        async with self._lock:
            now_s = self._clock.now_s() - self.begin_s  # minus infinity while warming up
            self.runs.append((now_s, work, rows))
            length_s = run_s(work, len(rows)) * self._random.lognormvariate(0.0, 0.08)
            length_s *= self._slowdown(work, now_s)
            for stall_s, stalled_s in self._stalls_s:
                if stall_s - length_s < now_s < stall_s + stalled_s:
                    length_s += stall_s + stalled_s - max(now_s, stall_s)
            await asyncio.sleep(length_s)
            if now_s >= 0 and self._random.random() < self._failure_rate:
                self.failed_rows += rows
                raise RuntimeError("a run failed")
            return function(work, rows)


class _Writer:
    """Models that cost nothing and say something arbitrary."""

    def __init__(self, bundle: Bundle) -> None:
        self._size = bundle.vocabulary.size
        index = bundle.manifest.index
        self._dimension = index.embedding_dim if index else 1

    def encode(self, rows: Sequence[Sequence[int]]) -> Any:
        ones_BD = np.ones((len(rows), self._dimension), np.float32)
        return ones_BD / np.sqrt(np.float32(self._dimension))

    def generate(self, rows: Sequence[GenerateRow]) -> list[Sequences]:
        return [self._sequences(row) for row in rows]

    def score(self, rows: Sequence[ScoreRow], num_candidates: int) -> list[Any]:
        return [np.zeros(len(row.candidate_ids), np.float32) for row in rows]

    def _sequences(self, row: GenerateRow) -> Sequences:
        choose = random.Random(hash(tuple(row.prompt_ids))).randrange
        ids = [[choose(FIRST_TEXT_ID, self._size) for _ in range(4)] for _ in row.rung.slots]
        return Sequences(ids, [True] * len(ids))


class _Model:
    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run


def stand_in(bundle: Bundle) -> Bundle:
    """Returns the bundle with models that cost nothing in place of its own."""
    writer = _Writer(bundle)
    return dataclasses.replace(
        bundle,
        encoder=cast("Any", _Model(writer.encode)),
        generator=cast("Any", _Model(writer.generate)),
        click_model=cast("Any", _Model(writer.score)),
    )


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come."""

    at_s: float
    query: str
    scenario: str = "suggestion"
    budget_s: float = 0.100
    patience_s: float = float("inf")  # the caller hangs up after that long


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    arrival: Arrival
    latency_s: float
    plan: str = ""  # of PLANS; empty if there was no answer
    error: str = ""  # class of the exception
    omissions: tuple[Omission, ...] = ()

    @property
    def is_in_budget(self) -> bool:
        return bool(self.plan) and self.latency_s <= self.arrival.budget_s + 1e-9


def poisson(
    rate_rps: float,
    duration_s: float,
    seed: int = 0,
    *,
    begin_s: float = 0.0,
    scenario: str = "suggestion",
    budget_s: float = 0.100,
) -> Iterator[Arrival]:
    """Yields requests at the times of a Poisson process, each with a query of its own."""
    draw, at_s, num = random.Random(f"{seed}/{scenario}"), begin_s, 0
    while (at_s := at_s + draw.expovariate(rate_rps)) < begin_s + duration_s:
        num += 1
        yield Arrival(at_s, f"odd {seed} {num:05}", scenario, budget_s)


def capacity_rps(bundle: Bundle, scenario: str = "suggestion") -> float:
    """Returns how many full answers a second the machine could make one after the other."""
    works = [bundle.rungs[scenario][0].work]
    works += [Work(Stage.ENCODE)] if bundle.manifest.encoder else []
    works += [Work(Stage.SCORE, (32,))] if bundle.manifest.click_model else []
    return 1 / sum(run_s(work, 1) for work in works)


async def play(
    bundle: Bundle,
    arrivals: Iterable[Arrival],
    machine: Machine,
    clock: SimulatedLoop,
    config: Config,
) -> tuple[list[Outcome], Pipeline]:
    """Returns what became of all requests, in the order of their arrival, and the pipeline."""
    pipeline = Pipeline(
        stand_in(bundle),
        cast("Runtime", machine),
        config,
        clock,
        randomness=random.Random(0),
    )
    await warm_up(bundle, pipeline.worker)
    machine.runs.clear()
    machine.begin_s = clock.now_s()
    tasks: list[asyncio.Task[Outcome]] = []
    for arrival in sorted(arrivals, key=lambda a: a.at_s):
        await asyncio.sleep(machine.begin_s + arrival.at_s - clock.now_s())
        tasks.append(asyncio.ensure_future(_asked(pipeline, arrival, clock)))
    return list(await asyncio.gather(*tasks)), pipeline


async def _asked(pipeline: Pipeline, arrival: Arrival, clock: SimulatedLoop) -> Outcome:
    started_s = clock.now_s()
    question = Question(
        scenario=pipeline.bundle.scenarios[arrival.scenario],
        query=arrival.query,
        num_suggestions=6,
        deadline=Deadline.after(arrival.budget_s, clock),
    )
    patience_s = arrival.patience_s if arrival.patience_s != float("inf") else None
    try:
        async with asyncio.timeout(patience_s):
            answer = await pipeline.recommend(question, Probe(clock))
    except (RequestError, TimeoutError) as error:
        return Outcome(arrival, clock.now_s() - started_s, error=type(error).__name__)
    latency_s = clock.now_s() - started_s
    return Outcome(arrival, latency_s, plan_of(answer), omissions=answer.omissions)


def plan_of(answer: Answer) -> str:
    """Returns the kind of an answer, by what it leaves out; see PLANS."""
    left = {o.stage: o.kind for o in answer.omissions if not o.is_harmless}
    is_ranked = Omission(Stage.SCORE, Left.SKIPPED, Why.NOT_IN_BUNDLE) not in answer.omissions
    if Stage.ENCODE in left:
        return "look-up"
    if left.get(Stage.SCORE) is Left.SKIPPED:
        return "log, unranked"
    if Stage.SCORE in left:
        return "log, ranked less"
    if left.get(Stage.GENERATE) is Left.SKIPPED:
        return "log, ranked" if is_ranked else "log, unranked"
    return "generated less" if left else "full"


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns shares of all requests: in budget, undegraded, by plan, refused; and latencies."""
    num = len(outcomes)
    plans, errors = Counter(o.plan for o in outcomes), Counter(o.error for o in outcomes)
    latencies = sorted(o.latency_s for o in outcomes if o.plan)
    quantile = lambda q: latencies[min(len(latencies) - 1, int(q * len(latencies)))]  # noqa: E731
    return {
        "requests": num,
        "in_budget": sum(o.is_in_budget for o in outcomes) / num,
        "undegraded": plans["full"] / num,
        "refused": sum(errors.values()) / num - errors[""] / num,
        "p50_ms": quantile(0.5) * 1000 if latencies else None,
        "p99_ms": quantile(0.99) * 1000 if latencies else None,
        "by_plan": {plan: plans[plan] / num for plan in PLANS},
    }
