"""The models of a bundle on a Triton Inference Server, over gRPC.

One call per row: Triton joins rows into batches, also those of different engines, but neither
keeps deadlines nor stops work whose caller has left, so both are done here. A server that is away
fails the rows that need it, at once; the connection comes back by itself.

Knows nothing of batches or of what texts mean. Needs the package tritonclient only once it is
used: the extra `triton`.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from engine.errors import EngineError
from engine.execution.connection import CHANNEL_OPTIONS, Outage
from engine.execution.models import (
    GENERATOR_OUTPUTS,
    Floats,
    GenerateRow,
    ScoreRow,
    Sequences,
    check_begin,
    checked,
    cut_sequences,
)
from engine.execution.wire import (
    Arrays,
    Wire,
    click_model_row,
    encoder_row,
    generator_row,
    model_name,
    specs,
    wire_of,
)
from engine.formats.manifest import MAX_ENCODER_TOKENS, Manifest
from engine.scheduling.batcher import TooLate
from engine.scheduling.deadline import Clock

if TYPE_CHECKING:
    from tritonclient.grpc import aio
    from tritonclient.grpc.model_config_pb2 import ModelConfig
    from tritonclient.utils import InferenceServerException

_log = logging.getLogger(__name__)

_START_TIMEOUT_S = 10.0  # of each question at the start
_CALL_TIMEOUT_S = 600.0  # of a row without a deadline, as when warming up


class _DataType(NamedTuple):
    name: str  # in requests
    number: int  # in configurations


_DATA_TYPES = {"int64": _DataType("INT64", 9), "float32": _DataType("FP32", 11)}


class TritonFailure(EngineError):
    """The server refused a row or could not be reached; it has been logged."""


async def connect(
    url: str, bundle_directory: Path, manifest: Manifest, clock: Clock
) -> "TritonModels":
    """Returns the models of a bundle on a server, after checking that it serves these very ones.

    Args:
        url: HOST:PORT of its gRPC service.
        bundle_directory: For messages.
        manifest: Of the bundle.
        clock: Time of deadlines.

    Raises:
        ValueError: tritonclient is not installed, the server does not answer, lacks a model, or
            has another signature of it.
    """
    try:
        from tritonclient.grpc import aio
    except ImportError:
        raise ValueError(
            f'triton.url is "{url}", but the package tritonclient is not installed: '
            "install queryrec with its extra, pip install -c constraints.txt -e '.[triton]'"
        ) from None
    client = aio.InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)
    models = TritonModels(client, url, manifest, clock)
    try:
        await _check(client, url, bundle_directory, manifest)
    except BaseException:
        await models.close()
        raise
    return models


class TritonModels:
    """See `engine.execution.runner.RemoteModels`. To be used from one event loop."""

    def __init__(
        self, client: "aio.InferenceServerClient", url: str, manifest: Manifest, clock: Clock
    ) -> None:
        """Wraps a connection."""
        self._client = client
        self._url = url
        self._clock = clock
        self._names = {role: model_name(role, manifest) for role in specs(manifest)}
        given = manifest.generator.outputs if manifest.generator else {}
        self._generator_outputs = [name for name in GENERATOR_OUTPUTS if name in given]
        click_model = manifest.click_model
        self._max_candidate_tokens = click_model.max_candidate_tokens if click_model else 0
        self._outage = Outage(f"triton at {url}", _log)

    @property
    def is_out(self) -> bool:
        """Whether the server fails or hangs, as far as its last calls tell."""
        return self._outage.is_on

    async def encode(self, ids: Sequence[int], finish_by_s: float) -> Floats:
        """Returns float32 (D).

        Raises:
            TooLate: `finish_by_s` came first.
            TritonFailure: the server failed.
            NotFinite: what it gave is not finite.
        """
        row = encoder_row(ids, MAX_ENCODER_TOKENS)
        (embedding_D,) = await self._infer("encoder", row, ["embedding"], finish_by_s)
        return embedding_D.astype(np.float32)

    async def generate(self, row: GenerateRow, finish_by_s: float) -> Sequences:
        """Returns what was generated for a prompt; raises as `encode` does."""
        arrays = generator_row(row)
        parts = await self._infer("generator", arrays, self._generator_outputs, finish_by_s)
        check_begin(parts[0].astype(np.int64), row)
        return cut_sequences(*(p.tolist() for p in parts), limits=row.rung.max_new_tokens)

    async def score(self, row: ScoreRow, num_candidates: int, finish_by_s: float) -> Floats:
        """Returns float32 (C) logits; raises as `encode` does."""
        arrays = click_model_row(row, num_candidates, self._max_candidate_tokens)
        (logits_C,) = await self._infer("click_model", arrays, ["click_logit"], finish_by_s)
        return logits_C[: len(row.candidate_ids)].astype(np.float32)

    async def close(self) -> None:
        """Ends the connection; calls in flight are cancelled."""
        await self._client.close()

    async def _infer(
        self, role: str, row: Arrays, outputs: Sequence[str], finish_by_s: float
    ) -> list[NDArray[np.float32] | NDArray[np.int64]]:
        """Returns a row's outputs without their leading 1."""
        from tritonclient.grpc import aio
        from tritonclient.utils import InferenceServerException

        left_s = finish_by_s - self._clock.now_s()
        if left_s <= 0:
            raise TooLate
        inputs: list[aio.InferInput] = []
        for name, array in row.items():
            tensor = aio.InferInput(name, array.shape, _DATA_TYPES[array.dtype.name].name)
            inputs.append(tensor.set_data_from_numpy(array))
        timeout_s = left_s if math.isfinite(left_s) else _CALL_TIMEOUT_S
        try:
            result = await self._client.infer(self._names[role], inputs, client_timeout=timeout_s)
        except asyncio.CancelledError:
            now_s = self._clock.now_s()
            if now_s >= finish_by_s:  # whoever waits gives up at the moment at which gRPC would
                self._outage.timed_out(now_s)
            raise
        except InferenceServerException as error:
            self._fail(error, finish_by_s)
        arrays: list[NDArray[np.float32] | NDArray[np.int64]] = []
        for output in outputs:
            array = result.as_numpy(output)
            if array is None or len(array) != 1:
                raise ValueError(f"{self._names[role]} at {self._url}: gave no {output} of one row")
            arrays.append(checked(output, array[0]))
        self._outage.answered()
        return arrays

    def _fail(self, error: "InferenceServerException", finish_by_s: float) -> NoReturn:
        status = error.status() or ""
        reason = f"{status.removeprefix('StatusCode.')} {error.message()}"
        if status == "StatusCode.DEADLINE_EXCEEDED":
            if math.isfinite(finish_by_s):
                self._outage.timed_out(self._clock.now_s())
                raise TooLate
            reason = f"no answer within {_CALL_TIMEOUT_S:g} s"
        message = f"triton at {self._url}: {reason}"
        self._outage.failed(message)
        raise TritonFailure(message) from None


async def _check(
    client: "aio.InferenceServerClient", url: str, bundle_directory: Path, manifest: Manifest
) -> None:
    """Raises ValueError unless the server has the models of the bundle."""
    from tritonclient.utils import InferenceServerException

    try:
        is_ready = await client.is_server_ready(client_timeout=_START_TIMEOUT_S)
        index = await client.get_model_repository_index(client_timeout=_START_TIMEOUT_S)
        served = sorted({m.name for m in index.models if m.state == "READY"})
        for role, spec in specs(manifest).items():
            name = model_name(role, manifest)
            if name not in served:
                raise ValueError(
                    f"the Triton server at {url} does not serve {name}; it serves "
                    f"{', '.join(served) or 'no model'}. Write what it lacks with: queryrec-export "
                    f"triton --bundle {bundle_directory} --out DIR --backend python (onnxruntime, "
                    "if the server has that backend), and start it with --model-repository=DIR"
                )
            response = await client.get_model_config(name, client_timeout=_START_TIMEOUT_S)
            _check_signature(f"{name} at {url}", response.config, wire_of(spec))
    except InferenceServerException as error:
        raise ValueError(
            f'triton.url is "{url}", but no Triton server answers there: {error.message()}; '
            "it has to be HOST:PORT of the gRPC service, whose port is 8001 by default"
        ) from None
    if not is_ready:
        _log.warning("triton at %s: says that it is not ready, but serves this bundle", url)


def _check_signature(where: str, config: "ModelConfig", wire: Wire) -> None:
    """Raises ValueError unless a model's configuration is what this engine sends and reads."""
    told = [
        {t.name: (t.data_type, tuple(t.dims)) for t in tensors}
        for tensors in (config.input, config.output)
    ]
    expected = [
        {t.name: (_DATA_TYPES[t.dtype].number, t.dims) for t in tensors}
        for tensors in (wire.inputs, wire.outputs)
    ]
    if told != expected or config.max_batch_size < 1:
        raise ValueError(
            f"{where}: inputs, outputs and max_batch_size are {told[0]}, {told[1]}, "
            f"{config.max_batch_size}, but must be {expected[0]}, {expected[1]}, at least 1: "
            "write the repository again with queryrec-export triton of this release"
        )
