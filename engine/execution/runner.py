"""Where rows are run: in this process, or on a model server. Both give the same results.

The worker hands a batch of one kind of work to a `Runner` and gets one result per row. Knows
nothing of queues, costs or requests.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, Protocol

from engine.execution.bundle import Bundle
from engine.execution.models import Floats, GenerateRow, ScoreRow, Sequences
from engine.execution.retrieval import Retrieval, Retrieved
from engine.execution.runtime import Runtime
from engine.scheduling.costs import Work
from engine.scheduling.deadline import Clock
from engine.scheduling.stages import Stage


class LookupRow(NamedTuple):
    """One query to embed and to look up."""

    query: str
    ids: Sequence[int]


class Found(NamedTuple):
    """The result of a `LookupRow`."""

    retrieved: Retrieved | None  # None where the index is searched elsewhere
    embedding_D: Floats
    encode_s: float  # of the whole batch
    search_s: float


Results = asyncio.Future[Any]  # of a sequence: one result per row


class Runner(Protocol):
    """Runs batches. To be used from one event loop."""

    max_batch_size: int  # rows of one run
    concurrency: int  # runs that go on at the same time
    can_cancel: bool  # whether cancelling `run` ends it early; else it runs to its end

    @property
    def is_out(self) -> bool:
        """Whether what runs the models is away or hangs, as far as is known."""
        ...

    def run(self, work: Work, rows: Sequence[Any], finish_by_s: float) -> Results:
        """Begins at once, and returns what will be one result per row, in order.

        Args:
            work: What to do.
            rows: Its inputs: `LookupRow`, `GenerateRow` or `ScoreRow`.
            finish_by_s: When the results stop being useful, on the clock; past that moment it may
                be `TooLate` that they come to.
        """
        ...

    async def close(self) -> None:
        """Ends connections, and lets go of models and index once nothing runs on them."""
        ...


class LocalRunner:
    """Runs the models of a loaded bundle one after another on the runtime's thread."""

    concurrency = 1
    can_cancel = False
    is_out = False

    def __init__(
        self,
        bundle: Bundle,
        retrieval: Retrieval | None,
        runtime: Runtime,
        clock: Clock,
        *,
        max_batch_size: int,
    ) -> None:
        """Remembers the parts; without `retrieval`, queries are only embedded."""
        self.max_batch_size = max_batch_size
        self._bundle: Bundle | None = bundle
        self._retrieval = retrieval
        self._runtime = runtime
        self._clock = clock

    def run(self, work: Work, rows: Sequence[Any], finish_by_s: float) -> Results:
        """See `Runner`. What has begun runs to its end, whenever that is."""
        return self._runtime.run(self._execute, work, rows)

    async def close(self) -> None:
        """Lets go of models and index after the last run; the runtime belongs to the caller."""
        await self._runtime.run(lambda: None)  # runs go one after another
        self._bundle = self._retrieval = None

    def _execute(self, work: Work, rows: Sequence[Any]) -> Sequence[object]:
        """Runs on the model thread."""
        bundle = self._bundle
        assert bundle is not None
        if work.stage is Stage.ENCODE:
            return self._look_up(bundle, rows)
        if work.stage is Stage.GENERATE:
            assert bundle.generator is not None
            return bundle.generator.run(rows)
        assert work.stage is Stage.SCORE
        assert bundle.click_model is not None
        return bundle.click_model.run(rows, work.variant[0])

    def _look_up(self, bundle: Bundle, rows: Sequence[LookupRow]) -> list[Found]:
        assert bundle.encoder is not None
        retrieval = self._retrieval
        started_s = self._clock.now_s()
        embeddings_BD = bundle.encoder.run([r.ids for r in rows])
        encoded_s = self._clock.now_s()
        found = [
            retrieval.nearby(r.query, e) if retrieval else None
            for r, e in zip(rows, embeddings_BD, strict=True)
        ]
        search_s = self._clock.now_s() - encoded_s
        return [
            Found(f, e, encoded_s - started_s, search_s)
            for f, e in zip(found, embeddings_BD, strict=True)
        ]


class RemoteModels(Protocol):
    """The models of a bundle on a server, row by row; `models` says what they give."""

    @property
    def is_out(self) -> bool:
        """Whether the server is away or hangs, as far as is known."""
        ...

    async def encode(self, ids: Sequence[int], finish_by_s: float) -> Floats:
        """Returns float32 (D)."""
        ...

    async def generate(self, row: GenerateRow, finish_by_s: float) -> Sequences:
        """Returns what was generated for a prompt."""
        ...

    async def score(self, row: ScoreRow, num_candidates: int, finish_by_s: float) -> Floats:
        """Returns float32 (C) logits."""
        ...

    async def close(self) -> None:
        """Ends the connection."""
        ...


class RemoteRunner:
    """Sends each row to a model server, which forms the batches: other engines may use it too."""

    max_batch_size = 1
    can_cancel = True

    def __init__(
        self,
        models: RemoteModels,
        retrieval: Retrieval | None,
        runtime: Runtime,
        clock: Clock,
        *,
        concurrency: int,
    ) -> None:
        """Remembers the parts; the index is searched on the runtime's thread, if at all."""
        self.concurrency = concurrency
        self._models = models
        self._retrieval = retrieval
        self._runtime = runtime
        self._clock = clock

    @property
    def is_out(self) -> bool:
        """See `Runner`."""
        return self._models.is_out

    def run(self, work: Work, rows: Sequence[Any], finish_by_s: float) -> Results:
        """See `Runner`. Cancelling it cancels the calls."""
        return asyncio.ensure_future(self._all(work, rows, finish_by_s))

    async def close(self) -> None:
        """Ends the connection, and lets go of the index."""
        await self._models.close()
        self._retrieval = None

    async def _all(self, work: Work, rows: Sequence[Any], finish_by_s: float) -> list[object]:
        # In a task: what `gather` returns is not cancelled when it is, but has failed.
        return await asyncio.gather(*(self._one(work, row, finish_by_s) for row in rows))

    def _one(self, work: Work, row: Any, finish_by_s: float) -> Awaitable[object]:
        if work.stage is Stage.ENCODE:
            return self._look_up(row, finish_by_s)
        if work.stage is Stage.GENERATE:
            return self._models.generate(row, finish_by_s)
        assert work.stage is Stage.SCORE
        return self._models.score(row, work.variant[0], finish_by_s)

    async def _look_up(self, row: LookupRow, finish_by_s: float) -> Found:
        retrieval = self._retrieval
        started_s = self._clock.now_s()
        embedding_D = await self._models.encode(row.ids, finish_by_s)
        encoded_s = self._clock.now_s()
        retrieved = None
        if retrieval is not None:
            retrieved = await self._runtime.run(retrieval.nearby, row.query, embedding_D)
        search_s = self._clock.now_s() - encoded_s
        return Found(retrieved, embedding_D, encoded_s - started_s, search_s)
