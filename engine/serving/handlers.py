"""How calls reach the service: read, or refused before they are read.

Knows nothing of what methods do.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from engine import errors
from engine.serving.overload import PROBE_METHOD, QueueProbe
from engine.serving.service import DRAINING, Service
from queryrec.v1 import query_recommender_service_pb2 as pb

SERVICE_NAME = "queryrec.v1.QueryRecommenderService"
_SHED = f"/{SERVICE_NAME}/Recommend"
_MAX_QUESTION_BYTES = 192 << 10  # one with normalised texts has at most half of it
_PARSERS: dict[str, Callable[[bytes], object]] = {
    "Recommend": pb.RecommendRequest.FromString,
    "RecordFeedback": pb.RecordFeedbackRequest.FromString,
    "ListScenarios": pb.ListScenariosRequest.FromString,
}

if TYPE_CHECKING:  # not subscriptable at run time
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _GenericHandler = grpc.GenericRpcHandler
else:
    _Handler, _GenericHandler = grpc.RpcMethodHandler, grpc.GenericRpcHandler


def add_service(service: Service, server: aio.Server, probe: QueueProbe | None = None) -> None:
    """Registers the service.

    Unlike the generated function, a message that cannot be parsed (a string that is not UTF-8, cut
    bytes) becomes INVALID_ARGUMENT with a reason, instead of UNKNOWN with a Python exception. So
    does a question that is far too long, without being parsed.

    Args:
        service: Has a method for each of the contract.
        server: Not started yet.
        probe: Told of its calls; its `shedding` says which calls of Recommend are refused before
            they are read. Feedback cannot be asked for again.
    """
    server.add_generic_rpc_handlers((_Handlers(service, probe),))


class _Handlers(_GenericHandler):
    """Finds the handler of a call that has come, of which only the headers are known."""

    def __init__(self, service: Service, probe: QueueProbe | None) -> None:
        self._service = service
        self._probe = probe
        self._reading = {
            f"/{SERVICE_NAME}/{name}": _reading(service, name, parse)
            for name, parse in _PARSERS.items()
        }
        self._refusing = _refusing(service)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler | None:
        method = handler_call_details.method
        if self._probe is not None:
            if method == PROBE_METHOD:
                self._probe.arrived(handler_call_details.invocation_metadata or ())
            elif method == _SHED and self._probe.shedding.refuses():
                return self._refusing
        return self._reading.get(method)


def _reading(service: Service, name: str, parse: Callable[[bytes], object]) -> _Handler:
    method = getattr(service, name)

    def parsed(content: bytes) -> object:
        size = len(content)
        if name == "Recommend" and size > _MAX_QUESTION_BYTES:
            return errors.request_too_large(size, _MAX_QUESTION_BYTES)
        try:
            return parse(content)
        except DecodeError:
            rule = "a message of the contract, its strings in UTF-8"
            return errors.text_invalid("request", rule)

    async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        if isinstance(request, errors.RequestError):
            await service.refuse(name, context, request)
        return await method(request, context)

    def serialised(response: Any) -> bytes:
        return response.SerializeToString()

    return grpc.unary_unary_rpc_method_handler(call, parsed, serialised)


def _refusing(service: Service) -> _Handler:
    # As cheap as can be. Requests are said to be streams: then gRPC does not wait for the first.
    error = errors.QueueFull("call")
    details = errors.trailing_metadata(error)

    async def call(_: Any, context: aio.ServicerContext[Any, Any]) -> bytes:
        if service.is_draining:
            await service.refuse("Recommend", context, errors.NotReady(DRAINING))
        context.set_trailing_metadata((*service.shed("Recommend", context, error), *details))
        context.set_code(error.code)
        context.set_details(error.message)
        return b""

    return grpc.stream_unary_rpc_method_handler(call)
