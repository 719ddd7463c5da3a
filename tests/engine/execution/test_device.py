"""Models run on the device that is asked for, or not at all."""

from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from engine.config import Config, DeviceKind, ModelsConfig
from engine.execution.bundle import load_bundle
from engine.execution.device import CPU, Device, check_available, open_session, providers
from engine.execution.runtime import Runtime
from engine.formats.manifest import BundleError
from engine.serving.loading import make_runtime


def test_a_device_that_this_onnx_runtime_lacks_is_refused():
    names: dict[DeviceKind, str] = {"cuda": "CUDA", "tensorrt": "Tensorrt"}
    for kind, name in names.items():
        if f"{name}ExecutionProvider" not in ort.get_available_providers():
            with pytest.raises(ValueError, match=rf"models.device is '{kind}'.*onnxruntime-gpu"):
                check_available(Device(kind))
            config = msgspec.structs.replace(Config(), models=ModelsConfig(device=kind))
            with pytest.raises(ValueError, match="set it to 'cpu'"):
                make_runtime(config)
    check_available(CPU)


def test_providers_fall_back_towards_the_cpu_and_carry_their_options():
    assert providers(CPU) == [("CPUExecutionProvider", {})]
    names = [name for name, _ in providers(Device("tensorrt", 1, "/cache"))]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    tensorrt, cuda, _ = (options for _, options in providers(Device("tensorrt", 1, "/cache")))
    assert tensorrt["trt_engine_cache_path"] == "/cache"
    assert tensorrt["trt_engine_cache_enable"] is True
    assert tensorrt["device_id"] == cuda["device_id"] == 1
    assert providers(Device("tensorrt"))[0][1]["trt_engine_cache_enable"] is False


def test_int8_graphs_are_refused_on_a_gpu(tiny_bundle, runtime: Runtime, monkeypatch):
    monkeypatch.setattr(runtime, "device", Device("cuda"))
    with pytest.raises(BundleError, match=r"int8 graphs run on the CPU only.*--precision fp16"):
        load_bundle(tiny_bundle, runtime)


def test_a_device_that_fails_while_it_runs_is_no_silent_fallback(tiny_bundle, runtime: Runtime):
    session = runtime.open(tiny_bundle / "encoder.onnx", sha256="1" * 64)
    in_order = session._sess

    class Failing:
        """ONNX Runtime's part in C++ on a device that is gone."""

        def run(self, *arguments: object) -> object:
            raise EPFail("gone")

        def __getattr__(self, name: str) -> Any:
            return getattr(in_order, name)

    ids = np.ones((1, 2), np.int64)
    feed = {"input_ids": ids, "attention_mask": ids}
    session._sess = Failing()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(EPFail):
        session.run(["embedding"], feed)


def test_a_provider_that_does_not_start_is_no_silent_fallback(
    tiny_bundle, runtime: Runtime, monkeypatch
):
    monkeypatch.setattr(runtime, "device", Device("cuda"))
    monkeypatch.setattr("engine.execution.device.providers", lambda _: providers(CPU))
    with pytest.raises(BundleError, match=r"CUDAExecutionProvider could not start"):
        runtime.open(tiny_bundle / "encoder.onnx", sha256="0" * 64)


def test_a_provider_that_fails_to_start_is_told_with_the_way_out(tiny_bundle, monkeypatch):
    # As ONNX Runtime's wrapper passes it on where there is no GPU.
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    path, options = str(tiny_bundle / "encoder.onnx"), ort.SessionOptions()
    with pytest.raises(ValueError, match=r"CUDAExecutionProvider could not start.*'cpu'") as told:
        open_session(path, options, Device("cuda"))
    assert "failure 100" in str(told.value.__cause__)
    with pytest.raises(RuntimeError, match="failure 100"):
        open_session(path, options, CPU)
