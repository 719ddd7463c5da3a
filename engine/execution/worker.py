"""The model worker: puts rows of requests into batches and has them run.

Knows nothing of a request beyond its rows, and nothing of where models run.
"""

from collections.abc import Hashable, Iterable

from engine.config import Config
from engine.execution.learning import LearningRunner, generation_key
from engine.execution.models import GenerateRow, Sequences
from engine.execution.runner import Runner
from engine.scheduling.batcher import Batcher
from engine.scheduling.costs import Work
from engine.scheduling.deadline import Clock
from engine.scheduling.rows import Done, Waiting
from engine.telemetry.metrics import Metrics


class Worker:
    """Runs the models of one bundle. To be used from one event loop.

    Attributes:
        models: Runs the batches. It does not know the worker, so that a worker that is let go of
            is gone, and what it holds with it.
        max_rows: Rows that can run at the same time.
    """

    def __init__(
        self, runner: Runner, config: Config, clock: Clock, metrics: Metrics | None = None
    ) -> None:
        """Puts the parts together; runs nothing yet."""
        self._metrics = metrics or Metrics()
        self.models = LearningRunner(runner, config, clock, self._metrics)
        self.max_rows = runner.max_batch_size * runner.concurrency
        self._batcher = Batcher[Work](
            self.models.serve,
            self.models.costs.predict_s,
            max_batch_size=runner.max_batch_size,
            max_waiting=config.models.max_waiting,
            clock=clock,
            concurrency=runner.concurrency,
            can_cancel=runner.can_cancel,
        )

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
        key = generation_key(row) if isinstance(row, GenerateRow) else None
        if key is not None:
            is_shared = self._batcher.would_share(key, finish_by_s)
            self._metrics.cache_lookup("generation", "shared" if is_shared else "miss")
        return await self._batcher.submit(work, row, finish_by_s, flow=scenario, key=key)

    def cached(self, row: GenerateRow) -> Sequences | None:
        """Returns what was generated for an equal row lately."""
        sequences = self.models.generations.get(generation_key(row))
        if sequences is not None:
            self._metrics.cache_lookup("generation", "hit")
        return sequences

    def is_under_way(self, row: GenerateRow, finish_by_s: float) -> bool:
        """Returns whether an equal row waits or runs that should be in time."""
        return self._batcher.is_under_way(generation_key(row), finish_by_s)

    async def close(self) -> None:
        """Ends connections to where the models run."""
        await self.models.close()
