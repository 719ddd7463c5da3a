"""Where models run: ONNX Runtime's execution providers, their options, and sessions on them.

Knows nothing of what models mean.
"""

from typing import Any, NamedTuple

import onnxruntime as ort

from engine.config import DeviceKind

PROVIDERS: dict[DeviceKind, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class Device(NamedTuple):
    """A kind of device, and which one of them."""

    kind: DeviceKind
    number: int = 0
    tensorrt_cache: str = ""  # directory of compiled engines; empty: none are kept


CPU = Device("cpu")


def check_available(device: Device) -> None:
    """Checks that this build of ONNX Runtime knows the device.

    Raises:
        ValueError: it does not.
    """
    available = ort.get_available_providers()
    if PROVIDERS[device.kind] not in available:
        raise ValueError(
            f"models.device is {device.kind!r}, but this ONNX Runtime has only "
            f"{', '.join(available)}: install onnxruntime-gpu in place of onnxruntime, or set it "
            "to 'cpu'"
        )


def providers(device: Device) -> list[tuple[str, dict[str, Any]]]:
    """Returns the providers to open a session with, preferred ones first, and their options.

    What a provider cannot run falls to the next one. TensorRT takes over what it knows of a graph
    (the encoder, mostly: it knows neither loops over rotary embeddings nor fused norms).
    """
    cpu: tuple[str, dict[str, Any]] = (PROVIDERS["cpu"], {})
    if device.kind == "cpu":
        return [cpu]
    # TF32 would round fp32 products to 10 bits; memory grows by what is asked for, not by doubling.
    cuda: tuple[str, dict[str, Any]] = (
        PROVIDERS["cuda"],
        {
            "device_id": device.number,
            "use_tf32": 0,
            "arena_extend_strategy": "kSameAsRequested",
        },
    )
    if device.kind == "cuda":
        return [cuda, cpu]
    tensorrt: tuple[str, dict[str, Any]] = (
        PROVIDERS["tensorrt"],
        {
            "device_id": device.number,
            "trt_fp16_enable": False,  # fp16 graphs are fp16 already
            "trt_engine_cache_enable": bool(device.tensorrt_cache),
            "trt_engine_cache_path": device.tensorrt_cache,
        },
    )
    return [tensorrt, cuda, cpu]


def open_session(
    model: str | bytes, options: ort.SessionOptions, device: Device
) -> ort.InferenceSession:
    """Returns a session of a graph that runs on the device and, if that fails, nowhere else.

    Args:
        model: path or content of an ONNX file.
        options: of the session.
        device: where it runs.

    Raises:
        ValueError: the device's provider could not start. What ONNX Runtime raises of the graph
            comes as it is.
    """
    # With its own fallback, a session whose device fails would go on with another one.
    wanted = PROVIDERS[device.kind]
    failure = ValueError(
        f"{wanted} could not start, see ONNX Runtime's messages above: install the CUDA (and "
        "TensorRT) libraries it asks for, or set models.device to 'cpu'"
    )
    try:
        session = ort.InferenceSession(
            model, options, providers=providers(device), enable_fallback=0
        )
    except RuntimeError as error:  # of the device: what is said of graphs has types of its own
        if device.kind == "cpu":
            raise
        raise failure from error
    if wanted not in session.get_providers():  # left out in silence
        raise failure
    return session
