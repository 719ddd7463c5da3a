"""Writes a Triton model repository from a bundle: a directory per model, `config.pbtxt` in each.

What a configuration says comes from the graph's signature and the bundle. It sets no queue policy
and no delay: with any of the former, idle requests stalled for half a second, and the latter is
paid in full on quiet traffic. Deadlines and admission are the engine's.

Knows nothing of running servers.
"""

import json
import shutil
from pathlib import Path

import onnx
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import (
    TYPE_FP32,
    TYPE_INT32,
    TYPE_INT64,
    BatchInput,
    ModelConfig,
    ModelInstanceGroup,
)

from engine.config import DeviceKind
from engine.execution.runtime import usable_file
from engine.execution.wire import Wire, model_name, specs, wire_of
from engine.formats.manifest import (
    MAX_ENCODER_TOKENS,
    ClickModelSpec,
    GeneratorSpec,
    Manifest,
    ModelSpec,
    read_manifest,
    verify_files,
)
from engine.formats.vocabulary import Vocabulary, read_tokenizer_file
from export.options import MAX_BATCH_SIZE, Backend
from export.packing import packed
from export.ragged import Limits, build_ragged, ends_name

_TYPES = {"int64": TYPE_INT64, "float32": TYPE_FP32}
_PYTHON_MODEL = Path(__file__).with_name("triton_model.py")


def write_repository(
    bundle: Path,
    target: Path,
    *,
    backend: Backend,
    device: DeviceKind = "cpu",
    num_instances: int = 1,
    num_threads: int = 1,
    max_batch_size: int = MAX_BATCH_SIZE,
) -> list[str]:
    """Writes a repository with every model of a bundle and returns the models' names.

    Args:
        bundle: Bundle directory.
        target: Must not exist. A server reads several repositories; give each bundle its own.
        backend: Of Triton.
        device: Where graphs run.
        num_instances: Of each model, at work at the same time.
        num_threads: Of each instance.
        max_batch_size: Requests that Triton runs together.

    Raises:
        ValueError: `target` exists, the bundle cannot be used (BundleError) or has no model, or
            its graphs cannot run on the device, or on this machine's CPU.
    """
    manifest = read_manifest(bundle)
    models = specs(manifest)
    verify_files(bundle, manifest, manifest.model_files())
    if not models:
        raise ValueError(f"{bundle}: has no model, so there is nothing to serve")
    int8 = [s.file for s in models.values() if s.precision == "int8"]
    if int8 and device != "cpu":
        raise ValueError(
            f"{bundle}: {', '.join(int8)} are int8, which only runs on CPUs; "
            f"export the bundle with --precision fp16 or fp32 for --device {device}"
        )
    with packed(target) as partial:
        for role, spec in models.items():
            directory = partial / model_name(role, manifest) / "1"
            directory.mkdir(parents=True)
            wire, limits = wire_of(spec), _limits(bundle, spec, manifest)
            graph_file = bundle / usable_file(spec)
            if backend == "python":
                shutil.copyfile(graph_file, directory / "model.onnx")
                shutil.copyfile(_PYTHON_MODEL, directory / "model.py")
            else:
                graph = build_ragged(onnx.load(graph_file), wire, limits)
                (directory / "model.onnx").write_bytes(graph.SerializeToString())
            config = model_config(
                directory.parent.name, wire, limits, backend=backend, device=device,
                num_instances=num_instances, num_threads=num_threads,
                max_batch_size=max_batch_size,
            )  # fmt: skip
            text = text_format.MessageToString(config)
            (directory.parent / "config.pbtxt").write_text(text, encoding="utf-8")
    return [model_name(role, manifest) for role in models]


def model_config(
    name: str,
    wire: Wire,
    limits: Limits,
    *,
    backend: Backend,
    device: DeviceKind = "cpu",
    num_instances: int = 1,
    num_threads: int = 1,
    max_batch_size: int = MAX_BATCH_SIZE,
) -> ModelConfig:
    """Returns a model's configuration; see `write_repository` for the arguments."""
    config = ModelConfig(name=name, backend=backend, max_batch_size=max_batch_size)
    for tensor in wire.inputs:
        # The Python model groups what it is given by shape: it is best given everything.
        is_ragged = tensor.is_flat or (backend == "python" and min(tensor.dims) < 0)
        config.input.add(
            name=tensor.name, data_type=_TYPES[tensor.dtype], dims=tensor.dims,
            allow_ragged_batch=is_ragged,
        )  # fmt: skip
        if tensor.is_flat and backend == "onnxruntime":
            config.batch_input.add(
                kind=BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT, data_type=TYPE_INT32,
                target_name=[ends_name(tensor.name)], source_input=[tensor.name],
            )  # fmt: skip
    for tensor in wire.outputs:
        config.output.add(name=tensor.name, data_type=_TYPES[tensor.dtype], dims=tensor.dims)
    config.dynamic_batching.SetInParent()
    kind = ModelInstanceGroup.KIND_CPU if device == "cpu" else ModelInstanceGroup.KIND_GPU
    config.instance_group.add(kind=kind, count=num_instances)
    parameters = {"intra_op_thread_count": str(num_threads), "inter_op_thread_count": "1"}
    if backend == "python":
        parameters |= {
            "device": device,
            "vocabulary": str(limits.vocabulary),
            "max_tokens": json.dumps(dict(limits.max_tokens)),
            "max_new_tokens": str(limits.max_new_tokens),
        }
    elif device != "cpu":
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        if device == "tensorrt":
            accelerators.add(name="tensorrt").parameters["precision_mode"] = "FP32"
        # Also beside TensorRT, which leaves it what it does not know, and whose own TF32 only
        # NVIDIA_TF32_OVERRIDE=0 in the server's environment ends.
        accelerators.add(name="cuda").parameters["use_tf32"] = "0"
    for key, text in sorted(parameters.items()):
        config.parameters[key].string_value = text
    return config


def _limits(bundle: Path, spec: ModelSpec, manifest: Manifest) -> Limits:
    """Returns what a model's graph can take."""
    vocabulary = Vocabulary.load(bundle / "tokenizer.json").size
    if isinstance(spec, GeneratorSpec):
        longest = {"input_ids": spec.max_prompt_tokens}
        return Limits(vocabulary, longest, max(1, spec.max_new_tokens))
    if isinstance(spec, ClickModelSpec):
        longest = {
            "context_ids": manifest.prompt.max_tokens,
            "candidate_ids": spec.max_candidate_tokens,
        }
        return Limits(vocabulary, longest)
    tokenizer = read_tokenizer_file(bundle / spec.tokenizer)
    return Limits(tokenizer.get_vocab_size(), {"input_ids": MAX_ENCODER_TOKENS})
