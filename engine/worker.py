"""The model worker: batches rows, runs them on the model thread, learns what they cost.

Knows nothing of a request beyond its rows.
"""

import logging
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from engine.batcher import Batcher, Done
from engine.bundle import Bundle
from engine.cache import Cache
from engine.config import Config
from engine.costs import CostModel, Work
from engine.deadline import Clock
from engine.models import GenerateRow, Sequences
from engine.planner import Load
from engine.retrieval import Retrieval, Retrieved
from engine.runtime import Runtime
from engine.stages import Stage

_log = logging.getLogger(__name__)


class LookupRow(NamedTuple):
    """One query to embed and to look up."""

    query: str
    ids: list[int]


class Found(NamedTuple):
    """The result of a `LookupRow`."""

    retrieved: Retrieved
    encode_s: float  # of the whole batch
    search_s: float


class Worker:
    """Runs the models of one bundle. To be used from one event loop."""

    def __init__(
        self,
        bundle: Bundle,
        retrieval: Retrieval | None,
        runtime: Runtime,
        config: Config,
        clock: Clock,
    ) -> None:
        """Puts the parts together; runs nothing yet."""
        self.costs = CostModel(clock, config.models.cost_quantile)
        self._bundle = bundle
        self._retrieval = retrieval
        self._runtime = runtime
        self._clock = clock
        self._cache = Cache[Sequences](
            max_bytes=config.cache.max_bytes, ttl_s=config.cache.ttl_s, clock=clock
        )
        self._batcher = Batcher[Work](
            self.run,
            self.costs.predict_s,
            max_batch_size=config.models.max_batch_size,
            max_waiting=config.models.max_waiting,
            clock=clock,
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

    async def run(self, work: Work, rows: Sequence[Any]) -> Sequence[object]:
        """Returns the results of a batch, and learns what it cost."""
        started_s = self._clock.now_s()
        try:
            results = await self._runtime.run(self._execute, work, rows)
        except Exception:
            _log.exception("%s: a batch of %d rows failed", work.stage, len(rows))
            raise
        self.costs.observe(work, len(rows), self._clock.now_s() - started_s)
        return results

    async def warm(self, work: Work, rows: Sequence[Any]) -> None:
        """Runs a batch three times; the first time, which is slow, does not count."""
        await self._runtime.run(self._execute, work, rows)
        for _ in range(2):
            await self.run(work, rows)

    def _execute(self, work: Work, rows: Sequence[Any]) -> Sequence[object]:
        """Runs on the model thread."""
        bundle = self._bundle
        if work.stage is Stage.ENCODE:
            return self._look_up(rows)
        if work.stage is Stage.GENERATE:
            assert bundle.generator is not None
            generated = bundle.generator.run(rows)
            for row, sequences in zip(rows, generated, strict=True):
                # Here, so that what comes too late for its request still helps the next one.
                num_ids = len(row.prompt_ids) + sum(map(len, sequences.ids))
                self._cache.put(_cache_key(row), sequences, size_bytes=500 + 36 * num_ids)
            return generated
        assert work.stage is Stage.SCORE
        assert bundle.click_model is not None
        return bundle.click_model.run(rows, work.variant[0])

    def _look_up(self, rows: Sequence[LookupRow]) -> list[Found]:
        assert self._bundle.encoder is not None
        assert self._retrieval is not None
        started_s = self._clock.now_s()
        embeddings_BD = self._bundle.encoder.run([r.ids for r in rows])
        encoded_s = self._clock.now_s()
        found = [
            self._retrieval.nearby(r.query, e) for r, e in zip(rows, embeddings_BD, strict=True)
        ]
        search_s = self._clock.now_s() - encoded_s
        return [Found(f, encoded_s - started_s, search_s) for f in found]


def _cache_key(row: GenerateRow) -> Hashable:
    """Returns all that decides what is generated: one cache serves one bundle."""
    return (tuple(row.prompt_ids), row.first_token_range, row.rung)
