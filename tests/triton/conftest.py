"""A real tritonserver and what it serves. Without `make triton` the tests that need it skip."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import (  # what only tests use is not in typings/
    service_pb2,  # pyright: ignore[reportAttributeAccessIssue]
    service_pb2_grpc,  # pyright: ignore[reportAttributeAccessIssue]
)

from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent
_START_TIMEOUT_S = 120


class TritonServer:
    """A tritonserver process on a port of its own."""

    def __init__(self, directory: Path, *repositories: Path, is_verbose: bool = False) -> None:
        self._is_verbose = is_verbose
        self._log = directory / "tritonserver.log"
        self._repositories = repositories
        self._port = free_port()
        self.url = f"127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once all models are loaded."""
        arguments = [f"--model-repository={r}" for r in self._repositories]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("bash", str(ROOT / "examples/tritonserver.sh"), *arguments),
                    *("--grpc-address=127.0.0.1", f"--grpc-port={self._port}"),
                    *("--allow-http=false", "--allow-metrics=false", "--exit-timeout-secs=1"),
                    f"--log-verbose={int(self._is_verbose)}",
                ],
                stdout=log,
                stderr=log,
            )
        with grpc.insecure_channel(self.url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            until = time.monotonic() + _START_TIMEOUT_S
            while True:
                try:
                    request = service_pb2.ServerReadyRequest()
                    if stub.ServerReady(request, timeout=5, wait_for_ready=True).ready:
                        return
                except grpc.RpcError:
                    pass
                if self._process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"tritonserver did not start: {self.log()[-4000:]}")
                time.sleep(0.05)

    def log(self) -> str:
        """Returns what it has logged."""
        return self._log.read_text()

    def executions(self, model: str) -> tuple[int, int]:
        """Returns how often a model ran since the start, and for how many rows."""
        with grpc.insecure_channel(self.url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = service_pb2.ModelStatisticsRequest(name=model)
            found = stub.ModelStatistics(request, timeout=10).model_stats[0]
            return found.execution_count, found.inference_count

    def signal(self, number: signal.Signals, *, models_only: bool = False) -> None:
        """Sends a signal to the processes of its models and to the server itself."""
        assert self._process is not None
        pids = _descendants(self._process.pid)
        for pid in pids if models_only else [self._process.pid, *pids]:
            os.kill(pid, number)

    def kill(self) -> None:
        """Ends it at once, as a crash does."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)
            self._process.wait(10)


def _descendants(pid: int) -> list[int]:
    found = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [d for child in found for d in _descendants(child)]


@pytest.fixture(scope="session")
def bundle_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle; fp32, whose results do not depend on the CPU's instructions."""
    from export.sample import write_sample_bundle

    directory = tmp_path_factory.mktemp("triton") / "bundle"
    write_sample_bundle(directory, mode="beam", precision="fp32")
    return directory


@pytest.fixture(scope="session")
def repository(bundle_directory: Path) -> Path:
    from export.triton import write_repository

    directory = bundle_directory.with_name("repository")
    write_repository(bundle_directory, directory, backend="python")
    return directory


@pytest.fixture(scope="session")
def start_triton(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., TritonServer]]:
    """Starts servers: `start_triton(repository)`; all end with the session."""
    if not (ROOT / ".venv-triton/.installed").exists():
        pytest.skip("no tritonserver: make triton installs one")
    servers: list[TritonServer] = []

    def start(*repositories: Path, **options: bool) -> TritonServer:
        directory = tmp_path_factory.mktemp("tritonserver")
        server = TritonServer(directory, *repositories, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def triton(start_triton: Callable[..., TritonServer], repository: Path) -> TritonServer:
    """A server of the tiny bundle that no test harms."""
    return start_triton(repository)


@pytest.fixture
def own_triton(
    start_triton: Callable[..., TritonServer], repository: Path
) -> Iterator[TritonServer]:
    """A server of the tiny bundle that the test may harm."""
    server = start_triton(repository)
    yield server
    server.kill()
