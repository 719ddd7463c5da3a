"""ONNX Runtime: how sessions are opened and where they run. Knows nothing of what models mean.

All sessions of a process share one pool of threads, and one thread runs them one after another:
with a pool each, a generation took 38 ms where it takes 19 with a shared one (2 cores, medians).
"""

import asyncio
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import onnxruntime as ort

from engine.execution.cpu import cpu_features, missing_features
from engine.execution.device import CPU, Device, check_available, open_session
from engine.formats.manifest import BundleError, ModelSpec

A = ParamSpec("A")
R = TypeVar("R")

_ELEMENT_TYPES = {"tensor(int64)": "int64", "tensor(float)": "float32"}


class Runtime:
    """Opens sessions, and owns the thread that runs them."""

    _shared_pool_threads: int | None = None  # ONNX Runtime allows one pool per process

    def __init__(
        self,
        *,
        num_threads: int,
        shared_thread_pool: bool = True,
        device: Device = CPU,
    ) -> None:
        """Makes the pool, which no session may precede.

        Args:
            num_threads: Threads of the pool, the calling one included.
            shared_thread_pool: False gives each session a pool of its own. Once a shared pool
                exists, every session of the process has to use it.
            device: Where sessions run.

        Raises:
            ValueError: the process already has a shared pool of another size, or this ONNX
                Runtime does not know the device.
        """
        check_available(device)
        self.num_threads = num_threads
        self.device = device
        self._is_shared = shared_thread_pool
        if shared_thread_pool and Runtime._shared_pool_threads is None:
            ort.set_global_thread_pool_sizes(num_threads, 1)
            Runtime._shared_pool_threads = num_threads
        elif shared_thread_pool and Runtime._shared_pool_threads != num_threads:
            raise ValueError(
                f"this process already shares {Runtime._shared_pool_threads} threads among models; "
                f"{num_threads} cannot be had any more"
            )
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="models")
        self._parts: weakref.WeakValueDictionary[str, Any]
        self._parts = weakref.WeakValueDictionary()  # by sha256; gone once nobody uses them

    @property
    def num_sessions(self) -> int:
        """Returns how many models are in memory."""
        return sum(isinstance(part, ort.InferenceSession) for part in self._parts.values())

    def open(self, path: Path, sha256: str) -> ort.InferenceSession:
        """Returns a session of an ONNX file; the one in use if there is one of the same content.

        Releases whose models are the same files therefore hold them once. To be called from one
        thread at a time.

        Args:
            path: The file.
            sha256: Of its content, already verified.

        Raises:
            BundleError: the file is no graph that this ONNX Runtime can run.
        """
        return self.once(sha256, lambda: self._opened(path))

    def once(self, sha256: str, make: Callable[[], R]) -> R:
        """Returns what was made of another file of this content and is in use, or makes it.

        So a release that takes over starts with what the one before remembered. To be called from
        one thread at a time, for what is immutable.
        """
        part = self._parts.get(sha256)
        if part is None:
            part = self._parts[sha256] = make()
        return part

    def _opened(self, path: Path) -> ort.InferenceSession:
        options = ort.SessionOptions()
        if self._is_shared:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self.num_threads
            options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        try:
            return open_session(str(path), options, self.device)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            raise BundleError(f"{path}: cannot be loaded by ONNX Runtime: {error}") from error

    def run(self, function: Callable[A, R], *args: A.args, **kwargs: A.kwargs) -> asyncio.Future[R]:
        """Returns what the function's result will be; the model thread has it from now on."""
        return asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))

    def close(self) -> None:
        """Lets the running model finish and ends the thread."""
        self._executor.shutdown()


def usable_file(spec: ModelSpec, features: frozenset[str] | None = None) -> str:
    """Returns the model file that this CPU can run: the file itself or its fallback.

    Args:
        spec: The model.
        features: Of the CPU; None looks them up.

    Raises:
        BundleError: the CPU lacks a feature and there is no fallback.
    """
    if not spec.required_cpu_features:
        return spec.file
    missing = missing_features(
        spec.required_cpu_features, cpu_features() if features is None else features
    )
    if not missing:
        return spec.file
    if spec.fallback_file is None:
        raise BundleError(
            f"{spec.file}: needs the CPU feature {', '.join(missing)}, which this CPU lacks, and "
            "has no fallback; export with --precision fp32 or use another machine"
        )
    return spec.fallback_file


def signature(arguments: list[ort.NodeArg]) -> dict[str, list[str | int]]:
    """Returns name -> [element type, *shape] of a session's inputs or outputs.

    Dimensions are sizes, or names where they vary.
    """
    return {
        a.name: [
            _ELEMENT_TYPES.get(a.type, a.type),
            *(d if d is not None else "?" for d in a.shape),
        ]
        for a in arguments
    }
