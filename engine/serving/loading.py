"""From a bundle's directory to a pipeline that is verified and warm. Knows nothing of gRPC."""

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from engine.answering.pipeline import Pipeline
from engine.config import Config
from engine.execution import milvus
from engine.execution.bundle import load_bundle
from engine.execution.cpu import model_threads
from engine.execution.device import Device
from engine.execution.runtime import Runtime
from engine.execution.triton import TritonFailure, connect
from engine.execution.warmup import warm_up
from engine.formats.blocklist import Blocklist, read_phrases
from engine.scheduling.costs import Work
from engine.scheduling.deadline import Clock
from engine.serving.collector import set_aside
from engine.telemetry.metrics import Metrics

ReportCost = Callable[[Work, int, float], None]


def make_runtime(config: Config) -> Runtime:
    """Returns the runtime that the configuration asks for.

    Raises:
        ValueError: this ONNX Runtime does not know the device.
    """
    return Runtime(
        num_threads=config.models.num_threads or model_threads(config.server.workers),
        shared_thread_pool=config.models.shared_thread_pool,
        device=Device(config.models.device, config.models.device_id, config.models.tensorrt_cache),
    )


def blocked_phrases(config: Config) -> list[str]:
    """Returns what the blocklist holds now.

    Raises:
        ValueError: it cannot be read.
    """
    return read_phrases(config.ranking.blocklist, "ranking.blocklist")


@lru_cache(1)
def _blocklist(phrases: tuple[str, ...]) -> Blocklist:
    """Returns a blocklist; the same again for both sides, and for releases between changes."""
    return Blocklist(phrases)


async def load_pipeline(
    bundle_directory: Path,
    runtime: Runtime,
    config: Config,
    clock: Clock,
    report: ReportCost | None = None,
    *,
    phrases: Sequence[str] | None = None,
    others: Sequence[Pipeline] = (),
    metrics: Metrics | None = None,
) -> Pipeline:
    """Returns a pipeline that is verified and warm.

    Args:
        bundle_directory: The release.
        runtime: Runs its models.
        config: Settings.
        clock: Time of deadlines.
        report: See `warm_up`.
        phrases: What no answer may hold; None: what the blocklist holds now.
        others: Pipelines of the same runtime. If one has the same models, they are warm here; on
            Triton only if it is of the same bundle.
        metrics: Where its work is counted.

    Raises:
        BundleError: the bundle cannot be used.
        ValueError: the blocklist cannot be read, or the Triton or Milvus server does not serve
            the bundle.
    """
    phrases = blocked_phrases(config) if phrases is None else phrases
    blocklist = await asyncio.to_thread(_blocklist, tuple(phrases))
    url = config.triton.url
    has_graph = not config.milvus.uri
    bundle = await asyncio.to_thread(
        load_bundle, bundle_directory, None if url else runtime, has_graph=has_graph
    )
    neighbours = None
    if not has_graph and bundle.index is not None:
        neighbours = await milvus.connect(config.milvus, bundle_directory, bundle.manifest, clock)
    try:
        remote = await connect(url, bundle_directory, bundle.manifest, clock) if url else None
    except BaseException:
        if neighbours is not None:
            await neighbours.close()
        raise
    pipeline = Pipeline(
        bundle,
        runtime,
        config,
        clock,
        remote=remote,
        neighbours=neighbours,
        blocklist=blocklist,
        metrics=metrics,
    )
    bundle_id = bundle.manifest.bundle_id
    alike = [o for o in others if bundle.manifest.has_models_of(o.bundle.manifest)]
    same = max(alike, key=lambda o: o.bundle.manifest.bundle_id == bundle_id, default=None)
    is_warm = False
    if same is not None:
        # A Triton server has each bundle's models by themselves.
        is_warm = remote is None or same.bundle.manifest.bundle_id == bundle_id
        pipeline.worker.models.adopt(same.worker.models)
    try:
        await warm_up(
            bundle,
            pipeline.worker,
            is_index_only=is_warm,
            is_beside_others=bool(others),
            is_compiled=runtime.device.kind == "tensorrt" and remote is None,
            report=report,
        )
    except BaseException as error:
        await pipeline.close()
        if isinstance(error, TritonFailure):
            raise ValueError(f"warming up: {error}") from None
        raise
    set_aside()
    return pipeline
