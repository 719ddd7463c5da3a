"""The server's life: listen, load, warm up, serve, drain. Knows nothing of single requests."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.answering.pipeline import Pipeline
from engine.config import Config, load_keys
from engine.feedback.attribution import MAX_TOKEN_BYTES, KeyRing
from engine.feedback.events import MAX_EVENTS_PER_CALL
from engine.feedback.log import FeedbackLog
from engine.scheduling.deadline import Clock, MonotonicClock
from engine.serving.collector import ShortPauses
from engine.serving.console import Signals, say, warn_of_ephemeral_keys
from engine.serving.handlers import SERVICE_NAME, add_service
from engine.serving.health import Health
from engine.serving.loading import blocked_phrases, load_pipeline, make_runtime
from engine.serving.overload import QueueProbe, Shedding
from engine.serving.places import Places
from engine.serving.ports import address_of, check_free, without_brackets
from engine.serving.releases import Releases
from engine.serving.service import Feedback, Service
from engine.telemetry import tracing
from engine.telemetry.metrics import Endpoint, Metrics
from engine.telemetry.observation import Observer
from engine.telemetry.state import State
from engine.telemetry.tracing import Tracer

# The largest valid request is feedback: 256 events, each little more than its token. What is twice
# as long, 1 MiB, is not read to its end.
_MAX_REQUEST_BYTES = 2 * MAX_EVENTS_PER_CALL * MAX_TOKEN_BYTES
_MAX_METADATA_BYTES = 16 << 10
_MAX_CALLS_PER_CONNECTION = 1000  # unread responses count; clients queue what is beyond
_KEEPALIVE_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000
_MIN_PING_INTERVAL_MS = 5_000  # clients that ask more often are hung up on
_MAX_CONNECTION_AGE_MS = 30 * 60_000  # clients open another first, and notice nothing
_MAX_CONNECTION_AGE_GRACE_MS = 60_000
_LAST_CALLS_S = 0.05
_STOP_S = 0.5  # for responses on their way; streams, such as of health, would never end
_CLOSE_LOG_S = 5.0  # for a disk that hangs, which may never answer
_HEALTH_NAMES = ("", SERVICE_NAME)

_log = logging.getLogger(__name__)


class Server:
    """One gRPC server. Serves once it listens and a release is loaded, in whatever order."""

    def __init__(
        self,
        config: Config,
        clock: Clock | None = None,
        *,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        keys: KeyRing | None = None,
        shares_port: bool = False,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Opens the feedback log and the keys.

        Args:
            config: Settings.
            clock: Time of deadlines.
            metrics: Where calls are counted; None makes some.
            tracer: Makes traces; None makes one if `config.tracing` asks for it.
            keys: Sign attribution tokens, in place of those of the configuration.
            shares_port: Whether other processes listen on the same port.
            report: Called with a line for the operator when a release takes over.

        Raises:
            ValueError: keys or feedback directory cannot be used, or traces cannot be made.
        """
        self._config = config
        self._clock = clock or MonotonicClock()
        self._metrics = metrics or Metrics()
        self._metrics.watch(self._state)
        self._endpoint: Endpoint | None = None
        if tracer is None and config.tracing.endpoint:
            tracer = tracing.connect(config.tracing.endpoint, config.tracing.sample_rate)
        self._tracer = tracer
        keys = keys or load_keys(config.feedback.keys_file)
        self._feedback_log = FeedbackLog(Path(config.feedback.directory))
        self._runtime = make_runtime(config)
        self.releases = Releases(
            self._load_pipeline,
            clock=self._clock,
            phrases=lambda: blocked_phrases(config),
            canary_share=config.server.canary_share,
            report=report,
        )
        self._service = Service(
            Feedback(keys=keys, log=self._feedback_log),
            self.releases,
            self._clock,
            default_budget_s=config.server.default_budget_ms / 1000,
            max_calls=config.server.max_concurrent_calls,
            observer=Observer(self._clock, self._metrics, tracer),
        )
        self._shedding = Shedding(config.server.default_budget_ms / 1000, self._clock)
        self._health = Health(_HEALTH_NAMES)
        self._shares_port = shares_port
        self._server: aio.Server | None = None
        self._probing: asyncio.Task[None] | None = None
        self._open = ExitStack()

    def show_metrics(self) -> None:
        """Serves metrics if the configuration asks for it: first of all, to say "not ready".

        Raises:
            ValueError: the address cannot be bound.
        """
        metrics = self._config.metrics
        if metrics.port:
            host = without_brackets(metrics.host)
            self._endpoint = Endpoint(self._metrics, host, metrics.port)

    async def start(self) -> int:
        """Listens, and returns the port. Health is NOT_SERVING unless a release is loaded.

        Raises:
            ValueError: the address cannot be bound.
        """
        self._open.enter_context(ShortPauses())
        server = aio.server(
            options=[
                ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
                # Alike: between the two limits, gRPC refuses calls at random.
                ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
                # Compressed requests are refused, and never inflated: what of that limit they keep
                # compressed can be a thousand times as long.
                ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
                ("grpc.per_message_decompression", 0),
                # Unless asked for, a second engine on the port is an error, not a sharer.
                ("grpc.so_reuseport", int(self._shares_port)),
                # A client that is gone, or does not read its responses, is hung up on some day.
                ("grpc.max_concurrent_streams", _MAX_CALLS_PER_CONNECTION),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
                # Both ask for signs of life between calls, too. Envoy does so every ten seconds.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
                ("grpc.max_connection_age_ms", _MAX_CONNECTION_AGE_MS),
                ("grpc.max_connection_age_grace_ms", _MAX_CONNECTION_AGE_GRACE_MS),
            ],
        )
        probe = QueueProbe(self._shedding, self._clock)
        add_service(self._service, server, probe)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        address = address_of(self._config.server.host, self._config.server.port)
        if not self._shares_port:
            check_free(self._config.server.host, self._config.server.port)  # gRPC says no reason
        try:
            port = server.add_insecure_port(address)
            # For calls to itself: the other port may be shared with other processes.
            own_port = server.add_insecure_port("127.0.0.1:0")
        except RuntimeError as error:
            raise ValueError(f"cannot listen on {address}: {error}") from None
        await server.start()
        self._probing = asyncio.ensure_future(probe.run(own_port))
        self._server = server
        _log.info("listening", extra={"address": address_of(self._config.server.host, port)})
        return port

    async def load(self, bundle: Path, canary: Path | None = None) -> None:
        """Loads, verifies and warms a bundle, and its canary if there is one; then says SERVING.

        Raises:
            BundleError: a bundle cannot be used.
            ValueError: see `load_pipeline`.
        """
        await self.releases.load(Places(bundle, canary))
        for side, release in self.releases.in_use.items():
            extra = {"side": side, "bundle_id": release.manifest.bundle_id}
            _log.info("bundle loaded", extra=extra)
        self._health.serve()

    async def drain(self) -> None:
        """Says NOT_SERVING, answers on for a while, then refuses calls and ends those in flight."""
        config = self._config.server
        _log.info("draining")
        self._health.end()
        if self._server is not None:
            if self.releases.main is not None:
                await asyncio.sleep(config.lame_duck_s)
            self._service.is_draining = True
            with suppress(TimeoutError):
                async with asyncio.timeout(config.grace_s):
                    await self._service.idle()
            if self._probing is not None:  # it would find that nobody answers
                self._probing.cancel()
            # What has arrived but is not taken yet when gRPC stops is CANCELLED, where UNAVAILABLE
            # would be right (https://github.com/grpc/grpc/issues/41785): take and refuse it.
            await asyncio.sleep(_LAST_CALLS_S)
            await self._server.stop(_STOP_S)
        await self.releases.close()
        self._runtime.close()
        if not await asyncio.to_thread(self._feedback_log.close, _CLOSE_LOG_S):
            _log.error(
                "feedback cannot be closed: %s gave no answer for %.0f s; the next start there "
                "closes it",
                *(self._config.feedback.directory, _CLOSE_LOG_S),
            )
        self._open.close()
        if self._endpoint is not None:
            await asyncio.to_thread(self._endpoint.close)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    def _state(self) -> State:
        sides = self.releases.in_use
        workers = [release.pipeline.worker for release in sides.values()]
        return State(
            bundle_ids={side: release.manifest.bundle_id for side, release in sides.items()},
            num_waiting=sum(worker.num_waiting for worker in workers),
            call_wait_s=self._shedding.wait_s,
            num_swaps=self.releases.num_swaps,
            num_refusals=self.releases.num_refusals,
        )

    async def _load_pipeline(
        self, side: str, directory: Path, phrases: Sequence[str], others: Sequence[Pipeline]
    ) -> Pipeline:
        pipeline = await load_pipeline(
            directory,
            self._runtime,
            self._config,
            self._clock,
            phrases=phrases,
            others=others,
            metrics=self._metrics,
        )
        self._metrics.expect(side, pipeline.bundle.scenarios)
        return pipeline


async def serve(places: Places, config: Config, *, started_s: float) -> None:
    """Serves until SIGTERM or SIGINT. Prints one line when it listens and one when it serves.

    Args:
        places: The bundle and the canary; links are followed again on SIGHUP.
        config: Settings.
        started_s: When the process started, on `time.monotonic`.

    Raises:
        ValueError: the bundle (BundleError), the address or a file cannot be used.
    """
    signals = Signals()
    server = Server(config, report=say)
    following = None
    try:
        server.show_metrics()
        port = await server.start()
        say(f"listening on {address_of(config.server.host, port)}")
        warn_of_ephemeral_keys(config)
        stopped = asyncio.ensure_future(signals.stop.wait())
        loading = asyncio.ensure_future(server.load(*places.resolved()))
        await asyncio.wait((stopped, loading), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():  # told to stop while loading: never say SERVING
            loading.cancel()
            return
        loading.result()
        main = server.releases.main
        assert main is not None
        say(f"serving {main.manifest.bundle_id} after {time.monotonic() - started_s:.2f} s")
        following = asyncio.ensure_future(_follow(places, server, signals, config.server.watch_s))
        await stopped
    finally:
        if following is not None:
            following.cancel()
        await server.drain()


async def _follow(places: Places, server: Server, signals: Signals, watch_s: float) -> None:
    """Swaps in what the places lead to, for ever."""
    async for is_asked in signals.reloads(watch_s):
        await server.releases.refresh(places.resolved(), is_asked=is_asked)
