"""Fixtures of the end-to-end tests."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.blocking import BlockingStub, blocking_stub

_TIMEOUT_S = 120  # a start with all its imports; hangs only are longer


@pytest.fixture(scope="module")
def channel(live_engine) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(live_engine.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel) -> BlockingStub:
    return blocking_stub(channel)


@pytest.fixture
def following(start_engine) -> Iterator[Callable[..., object]]:
    """Starts an engine whose further lines come one by one from `next_line()`."""
    engines = []

    def start(bundle: Path, directory: Path, *flags: str, **options: object):
        engine = start_engine(bundle, directory, *flags, **options)
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(
            target=lambda: [lines.put(line.rstrip()) for line in engine.process.stdout],
            daemon=True,
        )
        reader.start()
        engines.append((engine, reader))
        return engine, lambda: lines.get(timeout=_TIMEOUT_S)

    yield start
    for engine, reader in engines:
        engine.process.terminate()
        try:
            engine.process.wait(_TIMEOUT_S)
        finally:
            engine.process.kill()
        reader.join(_TIMEOUT_S)
        engine.process.stdout.close()
