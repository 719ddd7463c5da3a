"""Fixtures that several packages' tests share. Nothing heavy is imported before it is needed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Tiny models are fastest on one thread, and OpenMP's threads spin: beside any other busy process
# two of them take a hundred times as long. Set before torch is imported, here and in children.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Times are UTC, whatever the zone of the machine: nobody's own, so that a local time shows.
os.environ["TZ"] = "America/St_Johns"
time.tzset()

# The same examples in every run, however slow the machine is: a property that fails is the code's.
settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")

_START_TIMEOUT_S = 120


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights, in slots mode."""
    from export.sample import write_sample_bundle

    directory = tmp_path_factory.mktemp("bundle") / "tiny"
    write_sample_bundle(directory, mode="slots")
    return directory


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one: nothing of it is the same but the scenarios."""
    from export.sample import write_sample_bundle

    directory = tmp_path_factory.mktemp("bundle") / "other"
    write_sample_bundle(directory, mode="slots", seed=1)
    return directory


@dataclass(frozen=True)
class LiveEngine:
    """A running engine in a process of its own."""

    target: str  # "127.0.0.1:PORT"
    process: subprocess.Popen[str]
    feedback_directory: Path
    lines: list[str] = field(default_factory=list)  # of its standard output


def _start_engine(
    bundle: Path, directory: Path, *flags: str, environment: dict[str, str] | None = None
) -> LiveEngine:
    """Starts an engine on a free port and returns once it serves."""
    serve = ("serve", "--bundle", str(bundle), "--port", "0", *flags)
    feedback = directory / "feedback"
    with (directory / "stderr.txt").open("w") as stderr_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", *serve],
            stdout=subprocess.PIPE,
            stderr=stderr_file,
            text=True,
            env={
                **os.environ,
                "QUERYREC_FEEDBACK_DIRECTORY": str(feedback),
                "QUERYREC_MODELS_MAX_BATCH_SIZE": "4",
                "PYTHONSAFEPATH": "1",
                **(environment or {}),
            },
        )
    assert process.stdout is not None
    watchdog = threading.Timer(_START_TIMEOUT_S, process.kill)
    watchdog.start()
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("queryrec-engine: serving"):
                break
        else:
            process.wait()
            process.stdout.close()
            stderr = (directory / "stderr.txt").read_text()
            pytest.fail(f"the engine did not start: {lines} {stderr}")
    except BaseException:
        process.kill()
        raise
    finally:
        watchdog.cancel()
    listening = "queryrec-engine: listening on "
    target = next(x for x in lines if x.startswith(listening)).removeprefix(listening)
    return LiveEngine(target, process, feedback, lines)


def _stop_engine(engine: LiveEngine, number: str = "SIGTERM") -> int:
    """Sends a signal and returns the exit status."""
    if engine.process.poll() is None:
        engine.process.send_signal(signal.Signals[number])
    try:
        return engine.process.wait(60)  # longer than any drain
    except subprocess.TimeoutExpired:
        engine.process.kill()
        raise
    finally:
        assert engine.process.stdout is not None
        engine.process.stdout.close()


@pytest.fixture(scope="session")
def start_engine() -> Iterator[Callable[..., LiveEngine]]:
    """Starts further engines: `start_engine(bundle, directory, *flags)`; the caller stops them.

    None outlives the tests, whatever fails.
    """
    started: list[LiveEngine] = []

    def start(*arguments: Any, **options: Any) -> LiveEngine:
        started.append(_start_engine(*arguments, **options))
        return started[-1]

    yield start
    for engine in started:
        engine.process.kill()


@pytest.fixture(scope="session")
def stop_engine() -> Callable[..., int]:
    """Stops an engine: `stop_engine(engine)`."""
    return _stop_engine


@pytest.fixture(scope="session")
def live_engine(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveEngine]:
    """An engine that serves the tiny bundle, started through its command line."""
    engine = _start_engine(tiny_bundle, tmp_path_factory.mktemp("engine"))
    yield engine
    _stop_engine(engine)
