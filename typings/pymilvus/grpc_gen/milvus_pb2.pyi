from collections.abc import Sequence

from google.protobuf.message import Message
from pymilvus.grpc_gen.common_pb2 import KeyValuePair

class SearchRequest(Message):
    def __init__(
        self,
        *,
        db_name: str,
        collection_name: str,
        placeholder_group: bytes,
        dsl_type: int,
        search_params: Sequence[KeyValuePair],
        nq: int,
        consistency_level: int,
        guarantee_timestamp: int,
    ) -> None: ...
