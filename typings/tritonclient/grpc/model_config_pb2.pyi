from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

TYPE_INT32: int
TYPE_INT64: int
TYPE_FP32: int

class DataType:
    @staticmethod
    def Name(number: int) -> str: ...

class ModelInput(Message):
    name: str
    data_type: int
    dims: Sequence[int]
    allow_ragged_batch: bool

class ModelOutput(Message):
    name: str
    data_type: int
    dims: Sequence[int]

class BatchInput(Message):
    BATCH_ACCUMULATED_ELEMENT_COUNT: int
    kind: int
    target_name: Sequence[str]
    data_type: int
    source_input: Sequence[str]

class ModelInstanceGroup(Message):
    KIND_CPU: int
    KIND_GPU: int
    kind: int
    count: int

class ModelConfig(Message):
    name: str
    backend: str
    max_batch_size: int
    input: Any  # repeated ModelInput
    output: Any  # repeated ModelOutput
    batch_input: Any  # repeated BatchInput
    instance_group: Any
    dynamic_batching: Any
    optimization: Any
    parameters: Any
    def __init__(
        self, *, name: str = ..., backend: str = ..., max_batch_size: int = ...
    ) -> None: ...
