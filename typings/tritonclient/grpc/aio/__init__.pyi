from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig

class InferInput:
    def __init__(self, name: str, shape: Sequence[int], datatype: str) -> None: ...
    def set_data_from_numpy(self, input_tensor: NDArray[Any]) -> InferInput: ...

class InferResult:
    def as_numpy(self, name: str) -> NDArray[Any] | None: ...

class _IndexedModel:
    name: str
    version: str
    state: str
    reason: str

class _RepositoryIndex:
    models: Sequence[_IndexedModel]

class _ModelConfigResponse:
    config: ModelConfig

class InferenceServerClient:
    def __init__(
        self, url: str, *, channel_args: Sequence[tuple[str, int | str]] | None = None
    ) -> None: ...
    async def is_server_ready(self, *, client_timeout: float | None = None) -> bool: ...
    async def get_model_repository_index(
        self, *, client_timeout: float | None = None
    ) -> _RepositoryIndex: ...
    async def get_model_config(
        self, model_name: str, *, client_timeout: float | None = None
    ) -> _ModelConfigResponse: ...
    async def infer(
        self,
        model_name: str,
        inputs: Sequence[InferInput],
        *,
        client_timeout: float | None = None,
    ) -> InferResult: ...
    async def close(self) -> None: ...
    def __getattr__(self, name: str) -> Any: ...
