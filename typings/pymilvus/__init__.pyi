"""Types of what this project uses of pymilvus, whose own are partly missing."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

class MilvusException(Exception):
    message: str
    def __init__(self, *, message: str) -> None: ...

class DataType(IntEnum):
    INT64 = ...
    FLOAT_VECTOR = ...

class CollectionSchema:
    def add_field(
        self, field_name: str, datatype: DataType, *, is_primary: bool = False, dim: int = 0
    ) -> CollectionSchema: ...

class IndexParams:
    def add_index(
        self, field_name: str, index_type: str = "", *, metric_type: str, params: dict[str, int]
    ) -> None: ...

class MilvusClient:
    def __init__(
        self,
        uri: str,
        *,
        token: str = "",
        db_name: str = "",
        timeout: float | None = None,
        dedicated: bool = False,
        grpc_options: dict[str, int | str] = ...,
    ) -> None: ...
    @staticmethod
    def create_schema(*, auto_id: bool) -> CollectionSchema: ...
    @staticmethod
    def prepare_index_params() -> IndexParams: ...
    def create_collection(
        self,
        collection_name: str,
        *,
        schema: CollectionSchema,
        timeout: float | None = None,
    ) -> None: ...
    def create_index(
        self, collection_name: str, index_params: IndexParams, timeout: float | None = None
    ) -> None: ...
    def list_indexes(self, collection_name: str) -> list[str]: ...
    def has_collection(self, collection_name: str, timeout: float | None = None) -> bool: ...
    def drop_collection(self, collection_name: str, timeout: float | None = None) -> None: ...
    def describe_collection(
        self, collection_name: str, timeout: float | None = None
    ) -> dict[str, Any]: ...
    def load_collection(self, collection_name: str, timeout: float | None = None) -> None: ...
    def insert(
        self, collection_name: str, data: Sequence[dict[str, Any]], timeout: float | None = None
    ) -> dict[str, Any]: ...
    def flush(self, collection_name: str, timeout: float | None = None) -> None: ...
    def query(
        self,
        collection_name: str,
        filter: str = "",
        output_fields: Sequence[str] | None = None,
        timeout: float | None = None,
        *,
        consistency_level: str = ...,
    ) -> list[dict[str, Any]]: ...
    def close(self) -> None: ...
