"""One ONNX graph behind Triton's Python backend, for servers without the ONNX Runtime backend.

`queryrec-export triton --backend python` copies this file beside `model.onnx` as `model.py`. It
runs in Triton's stub process, where only numpy and onnxruntime are at hand, so it imports nothing
of queryrec. Each request is one row without padding, as `engine.execution.wire` describes; rows
whose other inputs agree in shape are padded and run together. A bad or a cancelled request is
answered with an error and disturbs none of those that came with it.

Knows nothing of what the ids mean.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# As in `engine`: ONNX Runtime reports home unless told not to before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

_PAD_MULTIPLE = 8  # as the engine pads, so that there are few shapes
_LENGTHS = "candidate_lengths"
_MASKS = {"input_ids": "attention_mask", "context_ids": "context_mask"}
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ],
}
# As in `engine.execution.device`: TF32 would round fp32 products to 10 bits. TensorRT has no option
# for it: there NVIDIA_TF32_OVERRIDE=0 in the server's environment ends it.
_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": False},
}

Row = dict[str, np.ndarray]


class TritonPythonModel:
    """What Triton's stub looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph; Triton calls this once per instance.

        Raises:
            RuntimeError: the device cannot be used.
        """
        config = json.loads(args["model_config"])
        told = {name: v["string_value"] for name, v in config["parameters"].items()}
        self._inputs = [i["name"] for i in config["input"]]
        self._outputs = [o["name"] for o in config["output"]]
        self._vocabulary = int(told["vocabulary"])
        self._max_tokens: dict[str, int] = json.loads(told["max_tokens"])
        self._max_new_tokens = int(told["max_new_tokens"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(told["intra_op_thread_count"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        # The models of a server have a pool each; threads that spin would slow down the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        wanted = _PROVIDERS[told["device"]]
        device = {"device_id": args["model_instance_device_id"]}
        providers: list[Any] = [(n, {**device, **_OPTIONS[n]}) for n in wanted if n in _OPTIONS]
        # With ONNX Runtime's own fallback, a session whose GPU fails would go on with the CPU.
        self._session = ort.InferenceSession(
            str(path), options, providers=[*providers, wanted[-1]], enable_fallback=0
        )
        if wanted[0] not in self._session.get_providers():  # left out in silence
            raise RuntimeError(
                f"{path}: {wanted[0]} could not start, see ONNX Runtime's messages above: install "
                "onnxruntime-gpu and the libraries that it asks for in Triton's Python, or write "
                "the repository with --device cpu"
            )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Returns one response per request, in order."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[Any, ...], list[tuple[int, Row]]] = {}
        num_cancelled = 0
        for place, request in enumerate(requests):
            if request.is_cancelled():
                num_cancelled += 1
                responses[place] = _failed("cancelled", pb_utils.TritonError.CANCELLED)
                continue
            try:
                row = self._row(request)
            except ValueError as error:
                responses[place] = _failed(str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            shapes = tuple(a.shape for n, a in row.items() if n not in self._max_tokens)
            groups.setdefault(shapes, []).append((place, row))
        if num_cancelled:
            pb_utils.Logger.log_verbose(f"{num_cancelled} of {len(requests)} rows were cancelled")
        for group in groups.values():
            try:
                results = self._session.run(self._outputs, self._padded([r for _, r in group]))
            except Exception as error:  # ONNX Runtime's exceptions have no common base but this
                for place, _ in group:
                    responses[place] = _failed(str(error), pb_utils.TritonError.INTERNAL)
                continue
            for number, (place, _) in enumerate(group):
                tensors = [
                    pb_utils.Tensor.from_dlpack(name, result[number : number + 1])
                    for name, result in zip(self._outputs, results, strict=True)
                ]
                responses[place] = pb_utils.InferenceResponse(tensors)
        return responses

    def _row(self, request: Any) -> Row:
        """Returns a request's inputs without their leading 1.

        Raises:
            ValueError: it has several rows, or the graph cannot take them.
        """
        row: Row = {}
        for name in self._inputs:
            array = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))
            if array.shape[0] != 1:
                raise ValueError(f"{name}: a request is one row, this one has {array.shape[0]}")
            row[name] = array[0]
        for name, longest in self._max_tokens.items():
            lengths = row[_LENGTHS] if name == "candidate_ids" else np.array([row[name].size])
            if lengths.min(initial=1) < 1 or lengths.max(initial=1) > longest:
                raise ValueError(f"{name}: {lengths.tolist()} ids, must be 1 to {longest}")
            if lengths.sum() != row[name].size:
                raise ValueError(f"{name}: {row[name].size} ids, {_LENGTHS} add to {lengths.sum()}")
        for name in (*self._max_tokens, "slots"):
            ids = row.get(name, np.zeros(1, np.int64))
            if ids.size == 0 or ids.min() < 0 or ids.max() >= self._vocabulary:
                raise ValueError(f"{name}: needs ids, all of them in [0, {self._vocabulary})")
        for name, other in (("slots", "max_new_tokens"), (_LENGTHS, "features")):
            if name in row and len(row[name]) != len(row[other]):
                raise ValueError(f"{other}: has {len(row[other])} rows, {name} {len(row[name])}")
        if "max_new_tokens" in row:
            row["max_new_tokens"] = row["max_new_tokens"].clip(1, self._max_new_tokens)
        return row

    def _padded(self, rows: list[Row]) -> dict[str, np.ndarray]:
        """Returns the graph's inputs for rows whose shapes agree."""
        feed: dict[str, np.ndarray] = {}
        for name in self._inputs:
            if name in _MASKS:
                lengths = np.array([r[name].size for r in rows])
                feed[name], feed[_MASKS[name]] = self._pad(name, rows, lengths)
            elif name == "candidate_ids":
                lengths = np.concatenate([r[_LENGTHS] for r in rows])
                ids, mask = self._pad(name, rows, lengths)
                shape = (len(rows), -1, ids.shape[1])
                feed[name], feed["candidate_mask"] = ids.reshape(shape), mask.reshape(shape)
            elif name != _LENGTHS:
                feed[name] = np.stack([r[name] for r in rows])
        return feed

    def _pad(
        self, name: str, rows: list[Row], lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and mask, int64 (runs, L), right padded with 0."""
        width = -(-int(lengths.max()) // _PAD_MULTIPLE) * _PAD_MULTIPLE
        mask = np.arange(min(width, self._max_tokens[name])) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate([r[name] for r in rows])
        return ids, mask.astype(np.int64)


def _failed(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
