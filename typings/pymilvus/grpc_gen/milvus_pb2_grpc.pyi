from typing import Any

from grpc import aio

class MilvusServiceStub:
    Search: aio.UnaryUnaryMultiCallable[Any, Any]
    def __init__(self, channel: aio.Channel) -> None: ...
