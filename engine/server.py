"""The server's life: listen, load, warm up, serve, drain. Knows nothing of single requests."""

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.bundle import load_bundle
from engine.config import Config, load_keys
from engine.costs import Work
from engine.cpu import num_usable_cpus
from engine.deadline import Clock, MonotonicClock
from engine.device import Device
from engine.feedback import FeedbackLog
from engine.pipeline import Pipeline
from engine.runtime import Runtime
from engine.safety import Blocklist
from engine.service import SERVICE_NAME, Feedback, Service, add_service
from engine.triton import TritonFailure, connect
from engine.warmup import warm_up

# The largest valid request has 96 KiB; one twice as long is not read to its end.
_MAX_REQUEST_BYTES = 192 << 10
_HEALTH_NAMES = ("", SERVICE_NAME)

ReportCost = Callable[[Work, int, float], None]


async def load_pipeline(
    bundle_directory: Path,
    runtime: Runtime,
    config: Config,
    clock: Clock,
    report: ReportCost | None = None,
) -> Pipeline:
    """Returns a pipeline that is verified and warm.

    Raises:
        BundleError: the bundle cannot be used.
        ValueError: the blocklist cannot be read, or the Triton server does not serve the bundle.
    """
    blocklist = Blocklist.load(config.ranking.blocklist)
    url = config.triton.url
    bundle = await asyncio.to_thread(load_bundle, bundle_directory, None if url else runtime)
    remote = await connect(url, bundle_directory, bundle.manifest, clock) if url else None
    pipeline = Pipeline(bundle, runtime, config, clock, remote=remote, blocklist=blocklist)
    try:
        await warm_up(bundle, pipeline.worker, report=report)
    except BaseException as error:
        await pipeline.worker.close()
        if isinstance(error, TritonFailure):
            raise ValueError(f"warming up: {error}") from None
        raise
    return pipeline


def make_runtime(config: Config) -> Runtime:
    """Returns the runtime that the configuration asks for.

    Raises:
        ValueError: this ONNX Runtime does not know the device.
    """
    return Runtime(
        num_threads=config.models.num_threads or num_usable_cpus(),
        shared_thread_pool=config.models.shared_thread_pool,
        device=Device(config.models.device, config.models.device_id, config.models.tensorrt_cache),
    )


class Server:
    """One gRPC server. Listens from the start, and serves once a bundle is loaded."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        """Opens the feedback log and the keys.

        Raises:
            ValueError: keys or feedback directory cannot be used.
        """
        self._config = config
        self._clock = clock or MonotonicClock()
        keys = load_keys(config.feedback.keys_file)
        self._feedback_log = FeedbackLog(Path(config.feedback.directory))
        self._runtime = make_runtime(config)
        self._service = Service(
            Feedback(keys=keys, log=self._feedback_log),
            self._clock,
            default_budget_s=config.server.default_budget_ms / 1000,
        )
        self._health = health.aio.HealthServicer()
        self._server: aio.Server | None = None

    async def start(self) -> int:
        """Listens, health NOT_SERVING, and returns the port.

        Raises:
            ValueError: the address cannot be bound.
        """
        server = aio.server(
            options=[
                ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
                ("grpc.so_reuseport", 0),  # a second engine on the port is an error, not a sharer
            ],
            maximum_concurrent_rpcs=self._config.server.max_concurrent_calls,
        )
        add_service(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await self._set_health(is_serving=False)
        address = f"{self._config.server.host}:{self._config.server.port}"
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise ValueError(f"cannot listen on {address}: {error}") from None
        await server.start()
        self._server = server
        return port

    async def load(self, bundle_directory: Path) -> Pipeline:
        """Loads, verifies and warms a bundle, then says SERVING.

        Raises:
            BundleError: the bundle cannot be used.
        """
        pipeline = await load_pipeline(bundle_directory, self._runtime, self._config, self._clock)
        self._service.pipeline = pipeline
        await self._set_health(is_serving=True)
        return pipeline

    async def drain(self) -> None:
        """Says NOT_SERVING, lets calls in flight finish within the grace period, then stops."""
        await self._health.enter_graceful_shutdown()
        self._service.is_draining = True
        if self._server is not None:
            await self._server.stop(self._config.server.grace_s)
        if self._service.pipeline is not None:
            await self._service.pipeline.worker.close()
        self._runtime.close()
        self._feedback_log.close()

    async def _set_health(self, *, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in _HEALTH_NAMES:
            await self._health.set(name, status.SERVING if is_serving else status.NOT_SERVING)


async def serve(bundle_directory: Path, config: Config) -> None:
    """Serves until SIGTERM or SIGINT. Prints one line when it listens and one when it serves.

    Raises:
        ValueError: the bundle (BundleError), the address or a file cannot be used.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(config)
    try:
        port = await server.start()
        print(f"queryrec-engine: listening on {config.server.host}:{port}", flush=True)
        if not config.feedback.keys_file:
            print(
                "queryrec-engine: warning: feedback.keys_file is not set; attribution tokens end "
                "with this process and other replicas refuse them",
                file=sys.stderr,
            )
        stopped = asyncio.ensure_future(stop.wait())
        loading = asyncio.ensure_future(server.load(bundle_directory))
        await asyncio.wait((stopped, loading), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():  # told to stop while loading: never say SERVING
            loading.cancel()
            return
        bundle_id = loading.result().bundle.manifest.bundle_id
        print(f"queryrec-engine: serving {bundle_id}", flush=True)
        await stopped
    finally:
        await server.drain()
