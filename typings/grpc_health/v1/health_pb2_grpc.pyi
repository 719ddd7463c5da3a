import grpc
from grpc import aio
from grpc_health.v1 import health_pb2

class HealthStub:
    def __init__(self, channel: aio.Channel | grpc.Channel) -> None: ...
    Check: aio.UnaryUnaryMultiCallable[
        health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    ]
    Watch: aio.UnaryStreamMultiCallable[
        health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    ]

class HealthServicer: ...

def add_HealthServicer_to_server(
    servicer: HealthServicer, server: aio.Server | grpc.Server
) -> None: ...
