"""The model worker: batches rows, has them run, learns what they cost.

Knows nothing of a request beyond its rows, and nothing of where models run.
"""

import asyncio
import logging
import math
from collections.abc import Hashable, Sequence
from typing import Any

from engine.batcher import Batcher, Done, TooLate
from engine.cache import Cache
from engine.config import Config
from engine.costs import CostModel, Work
from engine.deadline import Clock
from engine.errors import EngineError
from engine.models import GenerateRow, Sequences
from engine.planner import Load
from engine.runner import Runner
from engine.stages import Stage

_log = logging.getLogger(__name__)


class Worker:
    """Runs the models of one bundle. To be used from one event loop."""

    def __init__(self, runner: Runner, config: Config, clock: Clock) -> None:
        """Puts the parts together; runs nothing yet."""
        self.costs = CostModel(clock, config.models.cost_quantile)
        self.max_rows = runner.max_batch_size * runner.concurrency  # that run at the same time
        self._runner = runner
        self._clock = clock
        self._num_running = 0  # rows
        self._cache = Cache[Sequences](
            max_bytes=config.cache.max_bytes, ttl_s=config.cache.ttl_s, clock=clock
        )
        self._batcher = Batcher[Work](
            self.run,
            self.costs.predict_s,
            max_batch_size=runner.max_batch_size,
            max_waiting=config.models.max_waiting,
            clock=clock,
            concurrency=runner.concurrency,
            can_cancel=runner.can_cancel,
        )

    def load(self, work: Work) -> Load:
        """Returns what would be ahead of a row of this kind."""
        return Load(self._batcher.wait_s(work), self._batcher.joining(work))

    async def submit(self, work: Work, row: object, finish_by_s: float) -> Done:
        """Returns a row's result; see `Batcher.submit`."""
        return await self._batcher.submit(work, row, finish_by_s)

    def cached(self, row: GenerateRow) -> Sequences | None:
        """Returns what was generated for an equal row lately."""
        return self._cache.get(_cache_key(row))

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

    def _remember(self, row: GenerateRow, sequences: Any) -> None:
        num_ids = len(row.prompt_ids) + sum(map(len, sequences.ids))
        self._cache.put(_cache_key(row), sequences, size_bytes=500 + 36 * num_ids)


def _cache_key(row: GenerateRow) -> Hashable:
    """Returns all that decides what is generated: one cache serves one bundle."""
    return (tuple(row.prompt_ids), row.first_token_range, row.rung)
