import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2

class HealthStub:
    def __init__(self, channel: aio.Channel | grpc.Channel) -> None: ...
    Check: aio.UnaryUnaryMultiCallable[
        health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    ]

def add_HealthServicer_to_server(
    servicer: health.aio.HealthServicer, server: aio.Server | grpc.Server
) -> None: ...
