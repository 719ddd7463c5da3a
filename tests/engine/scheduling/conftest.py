"""What tests of the batcher share: a worker driven by hand, and rows submitted to it."""

import asyncio
from collections.abc import Sequence

import pytest

from engine.scheduling.batcher import Batcher

COST_S = 1.0
SOON_S, LATER_S = 10.0, 100.0


class ManualWorker:
    """Records the batches it is given and holds each until it is released."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[object]]] = []
        self.running: asyncio.Future[Sequence[object]]  # the last batch

    def run(self, kind: str, rows: Sequence[object], _: float) -> asyncio.Future[Sequence[object]]:
        self.batches.append((kind, list(rows)))
        self.running = asyncio.get_running_loop().create_future()
        return self.running

    async def finish(self, outcome: Sequence[object] | Exception = ()) -> None:
        kind, rows = self.batches[-1]
        if isinstance(outcome, Exception):
            self.running.set_exception(outcome)
        else:
            self.running.set_result(outcome or [f"{kind}:{row}" for row in rows])
        await settled()


async def settled() -> None:
    """Lets all callbacks run that can run."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def worker() -> ManualWorker:
    return ManualWorker()


@pytest.fixture
def batcher(worker, clock) -> Batcher[str]:
    return Batcher(
        worker.run, lambda kind, size: COST_S * size, max_batch_size=3, max_waiting=5, clock=clock
    )


@pytest.fixture
def submit(batcher, clock):
    def start(row: object, *, kind: str = "k", within_s: float = LATER_S) -> asyncio.Task:
        return asyncio.ensure_future(batcher.submit(kind, row, clock.now_s() + within_s))

    return start
