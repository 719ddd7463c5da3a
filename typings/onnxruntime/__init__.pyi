"""Types of what this project uses of onnxruntime 1.32, which ships none."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from numpy.typing import NDArray

class GraphOptimizationLevel(IntEnum):
    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_ALL = 99

class NodeArg:
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> list[int | str | None]: ...

class SessionOptions:
    use_per_session_threads: bool
    intra_op_num_threads: int
    inter_op_num_threads: int
    log_severity_level: int
    enable_cpu_mem_arena: bool
    enable_mem_pattern: bool
    enable_profiling: bool
    profile_file_prefix: str
    optimized_model_filepath: str
    graph_optimization_level: Any
    execution_mode: Any
    def __init__(self) -> None: ...
    def add_session_config_entry(self, key: str, value: str) -> None: ...
    def __getattr__(self, name: str) -> Any: ...

class RunOptions:
    terminate: bool
    log_severity_level: int
    def __init__(self) -> None: ...
    def add_run_config_entry(self, key: str, value: str) -> None: ...

class InferenceSession:
    def __init__(
        self,
        path_or_bytes: str | bytes,
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
        provider_options: Sequence[dict[str, Any]] | None = None,
        *,
        enable_fallback: int = 1,
    ) -> None: ...
    def get_inputs(self) -> list[NodeArg]: ...
    def get_outputs(self) -> list[NodeArg]: ...
    def get_providers(self) -> list[str]: ...
    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, NDArray[Any]],
        run_options: RunOptions | None = None,
    ) -> list[NDArray[Any]]: ...
    def __getattr__(self, name: str) -> Any: ...

def set_global_thread_pool_sizes(
    intra_op_num_threads: int = 0, inter_op_num_threads: int = 0
) -> None: ...
def get_available_providers() -> list[str]: ...
def set_default_logger_severity(severity: int) -> None: ...
def __getattr__(name: str) -> Any: ...
