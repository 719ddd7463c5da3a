"""The model worker: batches rows, has them run, learns what they cost.

Knows nothing of a request beyond its rows, and nothing of where models run.
"""

import asyncio
import logging
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from engine.config import Config
from engine.errors import EngineError
from engine.execution.models import GenerateRow, Sequences
from engine.execution.runner import Runner
from engine.scheduling.batcher import Batcher, Done, TooLate, Waiting
from engine.scheduling.cache import Cache
from engine.scheduling.costs import CostModel, Work
from engine.scheduling.deadline import Clock
from engine.scheduling.stages import Stage
from engine.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)


class Worker:
    """Runs the models of one bundle. To be used from one event loop.

    Attributes:
        costs: What it has learnt about run times.
        max_rows: Rows that can run at the same time.
        num_hits: Generations answered from the cache.
        num_shared: Generations that joined an equal one under way.
        num_misses: Generations that were neither cached nor under way.
    """

    def __init__(
        self, runner: Runner, config: Config, clock: Clock, metrics: Metrics | None = None
    ) -> None:
        """Puts the parts together; runs nothing yet."""
        self.costs = CostModel(clock, config.models.cost_quantile)
        self.max_rows = runner.max_batch_size * runner.concurrency
        self.num_hits = 0
        self.num_shared = 0
        self.num_misses = 0
        self._runner = runner
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._num_running = 0  # rows
        self._cache = Cache[Sequences](
            max_bytes=config.cache.max_bytes, ttl_s=config.cache.ttl_s, clock=clock
        )
        self._batcher = Batcher[Work](
            self._serve,
            self.costs.predict_s,
            max_batch_size=runner.max_batch_size,
            max_waiting=config.models.max_waiting,
            clock=clock,
            concurrency=runner.concurrency,
            can_cancel=runner.can_cancel,
        )

    @property
    def num_evictions(self) -> int:
        """Returns how many cached generations had to make room for others."""
        return self._cache.num_evictions

    @property
    def num_waiting(self) -> int:
        """Returns how many rows wait. May be asked from any thread."""
        return self._batcher.num_waiting

    def waiting(self) -> Iterable[Waiting[Work]]:
        """Yields the rows that wait."""
        return self._batcher.waiting()

    def wait_s(self) -> float:
        """Returns about how long it will be until the next batch can leave."""
        return self._batcher.wait_s()

    def lead_s(self, scenario: str, other: Hashable) -> float:
        """Returns how much more of the worker's time another scenario has had."""
        return self._batcher.lead_s(scenario, other)

    @property
    def num_beside(self) -> int:
        """Returns how many rows run beside the next batch when it leaves."""
        return self._batcher.num_beside

    async def submit(self, work: Work, row: object, finish_by_s: float, scenario: str) -> Done:
        """Returns a row's result, which equal generations share; see `Batcher.submit`."""
        key = _cache_key(row) if isinstance(row, GenerateRow) else None
        if key is not None:
            is_shared = self._batcher.is_under_way(key)
            self.num_shared += is_shared
            self.num_misses += not is_shared
            self._metrics.cache_lookup("generation", "shared" if is_shared else "miss")
        return await self._batcher.submit(work, row, finish_by_s, flow=scenario, key=key)

    def cached(self, row: GenerateRow) -> Sequences | None:
        """Returns what was generated for an equal row lately."""
        sequences = self._cache.get(_cache_key(row))
        self.num_hits += sequences is not None
        if sequences is not None:
            self._metrics.cache_lookup("generation", "hit")
        return sequences

    def is_under_way(self, row: GenerateRow) -> bool:
        """Returns whether an equal row waits or runs."""
        return self._batcher.is_under_way(_cache_key(row))

    async def run(
        self, work: Work, rows: Sequence[Any], finish_by_s: float = math.inf
    ) -> Sequence[object]:
        """Returns the results of a batch, and learns what it cost.

        The cost is that of all rows that run when the batch starts: what runs beside it takes
        its share of the machine.
        """
        started_s = self._clock.now_s()
        size = self._num_running + len(rows)
        self._num_running += len(rows)
        try:
            results = await self._runner.run(work, rows, finish_by_s)
        except (asyncio.CancelledError, TooLate):
            # All that is known is that it takes longer than this.
            elapsed_s = self._clock.now_s() - started_s
            if elapsed_s > self.costs.predict_s(work, size):
                self.costs.observe(work, size, elapsed_s)
            raise
        except EngineError:
            raise  # whoever raised it has said what there is to say
        except Exception:
            _log.exception("%s: a batch of %d rows failed", work.stage, len(rows))
            raise
        finally:
            self._num_running -= len(rows)
        self.costs.observe(work, size, self._clock.now_s() - started_s)
        if work.stage is Stage.GENERATE:
            # Here, so that what comes too late for its request still helps the next one.
            for row, sequences in zip(rows, results, strict=True):
                self._remember(row, sequences)
        return results

    async def warm(self, work: Work, rows: Sequence[Any]) -> None:
        """Runs a batch three times; the first time, which is slow, does not count."""
        await self._runner.run(work, rows, math.inf)
        for _ in range(2):
            await self.run(work, rows)

    async def close(self) -> None:
        """Ends connections to where the models run."""
        await self._runner.close()

    async def _serve(self, work: Work, rows: Sequence[Any], finish_by_s: float) -> Sequence[object]:
        """Runs a batch of requests, which count where those of warming up do not."""
        started_s = self._clock.now_s()
        try:
            return await self.run(work, rows, finish_by_s)
        finally:
            self._metrics.batch_ran(work.stage, len(rows), self._clock.now_s() - started_s)

    def _remember(self, row: GenerateRow, sequences: Any) -> None:
        num_ids = len(row.prompt_ids) + sum(map(len, sequences.ids))
        self._cache.put(_cache_key(row), sequences, size_bytes=500 + 36 * num_ids)


def _cache_key(row: GenerateRow) -> Hashable:
    """Returns all that decides what is generated: one cache serves one bundle."""
    return (tuple(row.prompt_ids), row.first_token_range, row.rung)
