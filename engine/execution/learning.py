"""Batches are run, what they cost is learnt, and what they generate is kept.

Knows nothing of which rows make a batch, or of where models run.
"""

import logging
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from engine.config import Config
from engine.errors import EngineError
from engine.execution.models import GenerateRow, Sequences
from engine.execution.runner import Results, Runner
from engine.scheduling.batcher import TooLate
from engine.scheduling.cache import Cache
from engine.scheduling.costs import CostModel, Work
from engine.scheduling.deadline import Clock
from engine.scheduling.stages import Stage
from engine.telemetry.metrics import Metrics

_QUIET_S = 10.0  # between two log lines of a stage whose batches fail
_log = logging.getLogger(__name__)


class LearningRunner:
    """Runs batches of one bundle's models. To be used from one event loop.

    Attributes:
        costs: What it has learnt about run times.
        generations: Lately generated, by `generation_key`.
    """

    def __init__(self, runner: Runner, config: Config, clock: Clock, metrics: Metrics) -> None:
        """Knows nothing yet."""
        self.costs = CostModel(clock, config.models.cost_quantile)
        self.generations = Cache[Sequences](
            max_bytes=config.cache.max_bytes, ttl_s=config.cache.ttl_s, clock=clock
        )
        self._runner = runner
        self._clock = clock
        self._metrics = metrics
        self._num_running = 0  # rows
        self._quiet_until_s: dict[Stage, float] = {}
        self._num_untold: Counter[Stage] = Counter()  # batches that failed meanwhile

    @property
    def is_out(self) -> bool:
        """Whether what runs the models is away or hangs; see `Runner`."""
        return self._runner.is_out

    def adopt(self, other: "LearningRunner") -> None:
        """Goes on with what another one, of the same models, has learnt and generated."""
        self.costs.adopt(other.costs)
        self.generations = other.generations

    def run(self, work: Work, rows: Sequence[Any], finish_by_s: float = math.inf) -> Results:
        """Begins a batch and returns what will be its results; learns what it cost.

        The cost is that of all rows that run when the batch starts: what runs beside it takes
        its share of the machine.
        """
        started_s = self._clock.now_s()
        self._num_running += len(rows)
        size = self._num_running
        running = self._runner.run(work, rows, finish_by_s)
        running.add_done_callback(lambda run: self._learn(work, rows, size, started_s, run))
        return running

    def serve(self, work: Work, rows: Sequence[Any], finish_by_s: float) -> Results:
        """Does as `run`, for a batch of requests: these count where those of warming up do not."""
        started_s = self._clock.now_s()
        running = self.run(work, rows, finish_by_s)
        running.add_done_callback(
            lambda _: self._metrics.batch_ran(
                work.stage, len(rows), self._clock.now_s() - started_s
            )
        )
        return running

    async def warm(self, work: Work, rows: Sequence[Any]) -> None:
        """Runs a batch three times; the first time, which is slow, does not count."""
        await self.prepare(work, rows)
        for _ in range(2):
            await self.run(work, rows)

    async def prepare(self, work: Work, rows: Sequence[Any]) -> None:
        """Runs a batch and learns nothing of it."""
        await self._runner.run(work, rows, math.inf)

    async def close(self) -> None:
        """Ends connections to where the models run."""
        await self._runner.close()

    def _learn(
        self, work: Work, rows: Sequence[Any], size: int, started_s: float, run: Results
    ) -> None:
        self._num_running -= len(rows)
        elapsed_s = self._clock.now_s() - started_s
        error = None if run.cancelled() else run.exception()
        if run.cancelled() or isinstance(error, TooLate):
            # All that is known is that it takes longer than this.
            if elapsed_s > self.costs.predict_s(work, size):
                self.costs.observe(work, size, elapsed_s)
        elif isinstance(error, EngineError):
            pass  # whoever raised it has said what there is to say
        elif error is not None:
            self._tell(work.stage, len(rows), error)
        else:
            self.costs.observe(work, size, elapsed_s)
            if work.stage is Stage.GENERATE:
                # Here, so that what comes too late for its request still helps the next one.
                for row, sequences in zip(rows, run.result(), strict=True):
                    self._remember(row, sequences)

    def _tell(self, stage: Stage, num_rows: int, error: BaseException) -> None:
        """Logs a failure, unless another one of the stage was logged a moment ago."""
        now_s = self._clock.now_s()
        if now_s < self._quiet_until_s.get(stage, -math.inf):
            self._num_untold[stage] += 1
            return
        self._quiet_until_s[stage] = now_s + _QUIET_S
        num = self._num_untold.pop(stage, 0)
        others = f", and {num} others since the last one that was logged" if num else ""
        _log.error("%s: a batch of %d rows failed%s", stage, num_rows, others, exc_info=error)

    def _remember(self, row: GenerateRow, sequences: Any) -> None:
        num_ids = len(row.prompt_ids) + sum(map(len, sequences.ids))
        num_numbers = num_ids + len(sequences.logprobs or ())
        num_dropped = self.generations.put(
            generation_key(row), sequences, size_bytes=500 + 36 * num_numbers
        )
        self._metrics.cache_dropped("generation", num_dropped)


def generation_key(row: GenerateRow) -> Hashable:
    """Returns all that decides what is generated: one cache serves one bundle."""
    return (tuple(row.prompt_ids), row.first_token_range, row.rung)
