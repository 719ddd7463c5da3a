"""Types of what this project uses of grpcio-health-checking 1.76, which ships none."""

from grpc_health.v1 import health_pb2

SERVICE_NAME: str

class aio:
    class HealthServicer:
        def __init__(self) -> None: ...
        async def set(
            self, service: str, status: health_pb2.HealthCheckResponse.ServingStatus
        ) -> None: ...
        async def enter_graceful_shutdown(self) -> None: ...
