from enum import IntEnum

from google.protobuf.message import Message

class HealthCheckRequest(Message):
    def __init__(self, *, service: str = "") -> None: ...
    service: str

class HealthCheckResponse(Message):
    def __init__(self, *, status: ServingStatus = ...) -> None: ...
    class ServingStatus(IntEnum):
        UNKNOWN = 0
        SERVING = 1
        NOT_SERVING = 2
        SERVICE_UNKNOWN = 3

    UNKNOWN = ServingStatus.UNKNOWN
    SERVING = ServingStatus.SERVING
    NOT_SERVING = ServingStatus.NOT_SERVING
    SERVICE_UNKNOWN = ServingStatus.SERVICE_UNKNOWN
    status: ServingStatus
