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
from engine.serving.service import Service
from queryrec.v1 import query_recommender_service_pb2 as pb

SERVICE_NAME = "queryrec.v1.QueryRecommenderService"
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
    bytes) becomes INVALID_ARGUMENT with a reason, instead of UNKNOWN with a Python exception.

    Args:
        service: Has a method for each of the contract.
        server: Not started yet.
        probe: Told of its calls; its `shedding` says which calls are refused before they are read.
    """
    server.add_generic_rpc_handlers((_Handlers(service, probe),))


class _Handlers(_GenericHandler):
    """Finds the handler of a call that has come, of which only the headers are known."""

    def __init__(self, service: Service, probe: QueueProbe | None) -> None:
        self._probe = probe
        self._handlers = {
            f"/{SERVICE_NAME}/{name}": (_reading(service, name, parse), _refusing(service, name))
            for name, parse in _PARSERS.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler | None:
        found = self._handlers.get(handler_call_details.method)
        if found is None:
            details = handler_call_details
            if details.method == PROBE_METHOD and self._probe is not None:
                self._probe.arrived(details.invocation_metadata or ())
            return None
        reading, refusing = found
        is_refused = self._probe is not None and self._probe.shedding.refuses()
        return refusing if is_refused else reading


def _reading(service: Service, name: str, parse: Callable[[bytes], object]) -> _Handler:
    method = getattr(service, name)

    def parsed(content: bytes) -> object:
        try:
            return parse(content)
        except DecodeError:
            return None

    async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        if request is None:
            rule = "a message of the contract, its strings in UTF-8"
            await service.refuse(name, context, errors.text_invalid("request", rule))
        return await method(request, context)

    def serialised(response: Any) -> bytes:
        return response.SerializeToString()

    return grpc.unary_unary_rpc_method_handler(call, parsed, serialised)


def _refusing(service: Service, name: str) -> _Handler:
    # As cheap as can be. Requests are said to be streams: then gRPC does not wait for the first.
    error = errors.QueueFull("call")
    trailing = errors.trailing_metadata(error)

    async def call(_: Any, context: aio.ServicerContext[Any, Any]) -> bytes:
        service.shed(name, error)
        context.set_trailing_metadata(trailing)
        context.set_code(error.code)
        context.set_details(error.message)
        return b""

    return grpc.stream_unary_rpc_method_handler(call)
