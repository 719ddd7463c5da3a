"""The nearest known queries from a Milvus server, over gRPC.

A bundle's vectors lie in a collection of their own, named after the bundle, with the rows of its
index as keys; `queryrec-export milvus` puts them there. Texts, counts and co-occurrence lists stay
in the bundle. A server that is away fails a search at once, one that is slow until the search's
time is over; the connection comes back by itself.

The package pymilvus, the extra `milvus`, is needed only once this is used: its client to check the
collection, and its messages for searches, which its client would try again until a time-out.
"""

import asyncio
import base64
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import grpc
import numpy as np

from engine.config import MilvusConfig
from engine.errors import EngineError
from engine.execution.connection import CHANNEL_OPTIONS, Outage
from engine.formats.graph import Floats, Rows
from engine.formats.manifest import IndexSpec, Manifest
from engine.scheduling.batcher import TooLate
from engine.scheduling.deadline import Clock

if TYPE_CHECKING:
    from pymilvus import MilvusClient

ROW_FIELD = "row"
VECTOR_FIELD = "embedding"
_DEFAULT_PORT = 19530
_START_TIMEOUT_S = 10.0
_LOAD_TIMEOUT_S = 300.0  # of a collection that is not in the server's memory
_EVENTUALLY = 3  # ConsistencyLevel: a collection never changes, so nothing is waited for
_ANY_TIME = 1  # the guarantee timestamp of that level
_BOOLEAN_EXPRESSION = 1  # DslType

_log = logging.getLogger(__name__)


class MilvusFailure(EngineError):
    """The server refused a search or could not be reached; it has been logged."""


class Access(NamedTuple):
    """How a server is reached."""

    uri: str
    token: str  # user:password or an API key; empty: none
    database: str  # empty: the server's default

    @classmethod
    def of(cls, uri: str, token_file: str, database: str) -> "Access":
        """Reads the token.

        Raises:
            ValueError: the file cannot be read, or the URI is none.
        """
        try:
            parts = urlsplit(uri)
            is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of a port that is no number, or half a bracket
            is_address = False
        if not is_address:
            raise ValueError(
                f'milvus.uri is "{uri}"; it has to be http://HOST:PORT or https://HOST:PORT'
            )
        try:
            token = Path(token_file).read_text("utf-8").strip() if token_file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{token_file}: the Milvus token cannot be read: {error}") from None
        return cls(uri, token, database)

    def client(self) -> "MilvusClient":
        """Returns a client whose calls block.

        Raises:
            ValueError: pymilvus is not installed, or the server does not answer.
        """
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError:
            raise ValueError(
                f'milvus.uri is "{self.uri}", but the package pymilvus is not installed: '
                "install queryrec with its extra, pip install -c constraints.txt -e '.[milvus]'"
            ) from None
        try:
            return MilvusClient(
                self.uri,
                token=self.token,
                db_name=self.database,
                timeout=_START_TIMEOUT_S,
                dedicated=True,  # others outlive `close`, and back off from a server that was away
                grpc_options=dict(CHANNEL_OPTIONS),
            )
        except MilvusException as error:
            raise ValueError(
                f'milvus.uri is "{self.uri}", but no Milvus server answers there: {error.message}'
            ) from None

    def channel(self) -> grpc.aio.Channel:
        """Returns a channel for calls of this event loop."""
        parts = urlsplit(self.uri)
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname  # IPv6
        target = f"{host}:{parts.port or _DEFAULT_PORT}"
        if parts.scheme == "https":
            credentials = grpc.ssl_channel_credentials()
            return grpc.aio.secure_channel(target, credentials, CHANNEL_OPTIONS)
        return grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what calls carry beside their messages."""
        token = base64.b64encode(self.token.encode()).decode()
        return (
            *((("authorization", token),) if self.token else ()),
            *((("dbname", self.database),) if self.database else ()),
        )


def collection_name(manifest: Manifest) -> str:
    """Returns what a bundle's collection is called: none can answer for another bundle."""
    return f"queryrec_{manifest.bundle_id}"


async def connect(
    config: MilvusConfig, bundle_directory: Path, manifest: Manifest, clock: Clock
) -> "MilvusNeighbours":
    """Returns the neighbours of a bundle's queries, after checking that all of them are there.

    Args:
        config: Where the server is.
        bundle_directory: For messages.
        manifest: Of a bundle with an index.
        clock: Time of deadlines.

    Raises:
        ValueError: pymilvus is not installed, the server does not answer, or has another
            collection than this bundle needs.
    """
    access = Access.of(config.uri, config.token_file, config.database)
    spec = manifest.index
    assert spec is not None
    await asyncio.to_thread(_check, access, collection_name(manifest), spec, bundle_directory)
    neighbours = MilvusNeighbours(access, manifest, clock, timeout_s=config.timeout_ms / 1000)
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            await neighbours.ready()
    except BaseException as error:
        await neighbours.close()
        if isinstance(error, TimeoutError):
            raise ValueError(f"the Milvus server at {config.uri} takes no connection") from None
        raise
    return neighbours


class MilvusNeighbours:
    """See `engine.execution.retrieval.Neighbours`. To be used from one event loop."""

    def __init__(
        self, access: Access, manifest: Manifest, clock: Clock, *, timeout_s: float
    ) -> None:
        """Opens a connection; needs pymilvus."""
        from pymilvus.grpc_gen.milvus_pb2_grpc import MilvusServiceStub

        spec = manifest.index
        assert spec is not None
        self._channel = access.channel()
        # The generated stub has interceptors of no use here, and no types.
        self._search: Any = MilvusServiceStub(self._channel).Search
        self._metadata = access.metadata()
        self._where = f"milvus at {access.uri}"
        self._database = access.database
        self._collection = collection_name(manifest)
        self._num_queries = spec.num_queries
        self._ef_search = spec.ef_search
        self._clock = clock
        self._timeout_s = timeout_s
        self._outage = Outage(self._where, _log)

    async def ready(self) -> None:
        """Waits for the connection, so that the first search does not."""
        await self._channel.channel_ready()

    async def nearest(self, embedding_D: Floats, k: int, finish_by_s: float) -> tuple[Rows, Floats]:
        """Returns up to k rows by cosine similarity with a unit embedding, best first.

        Raises:
            TooLate: `finish_by_s`, or the setting `milvus.timeout_ms`, came first.
            MilvusFailure: the server failed, or has answered nothing for a while.
        """
        left_s = min(self._timeout_s, finish_by_s - self._clock.now_s())
        if left_s <= 0:
            raise TooLate
        request = self._request(embedding_D, k)
        try:
            response = await self._search(request, timeout=left_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._outage.timed_out(self._clock.now_s())
                if self._outage.is_on:
                    raise MilvusFailure(f"{self._where} hangs") from None
                raise TooLate from None
            self._fail(f"{error.code().name} {error.details()}")
        status = response.status
        if status.code or status.error_code:
            self._fail(status.reason)
        rows = np.array(response.results.ids.int_id.data, np.int64)
        similarity = np.array(response.results.scores, np.float32)
        if len(rows) != len(similarity) or (rows >= self._num_queries).any():
            self._fail(f"{self._collection} has been changed: its rows are not those of the bundle")
        self._outage.answered()
        return rows.astype(np.int32), similarity

    async def close(self) -> None:
        """Ends the connection; calls in flight are cancelled."""
        await self._channel.close()

    def _request(self, embedding_D: Floats, k: int) -> Any:
        from pymilvus.grpc_gen import common_pb2, milvus_pb2

        vector = common_pb2.PlaceholderValue(
            tag="$0",
            type=common_pb2.PlaceholderType.FloatVector,
            values=[embedding_D.astype("<f4").tobytes()],
        )
        params = {
            "anns_field": VECTOR_FIELD,
            "topk": str(k),
            "metric_type": "IP",
            "round_decimal": "-1",
            # Milvus refuses less effort than there are results.
            "params": json.dumps({"metric_type": "IP", "ef": max(self._ef_search, k)}),
        }
        return milvus_pb2.SearchRequest(
            db_name=self._database,
            collection_name=self._collection,
            placeholder_group=common_pb2.PlaceholderGroup(
                placeholders=[vector]
            ).SerializeToString(),
            dsl_type=_BOOLEAN_EXPRESSION,
            search_params=[
                common_pb2.KeyValuePair(key=name, value=value) for name, value in params.items()
            ],
            nq=1,
            consistency_level=_EVENTUALLY,
            guarantee_timestamp=_ANY_TIME,
        )

    def _fail(self, reason: str) -> NoReturn:
        message = f"{self._where}: {reason}"
        self._outage.failed(message)
        raise MilvusFailure(message)


def _check(access: Access, name: str, spec: IndexSpec, bundle_directory: Path) -> None:
    """Raises ValueError unless the server holds the vectors of the bundle."""
    from pymilvus import MilvusException

    client = access.client()
    load = f"queryrec-export milvus --bundle {bundle_directory} --uri {access.uri}"
    try:
        if not client.has_collection(name, timeout=_START_TIMEOUT_S):
            raise ValueError(
                f"the Milvus server at {access.uri} has no collection {name}. Load it with: {load}"
            )
        described = client.describe_collection(name, timeout=_START_TIMEOUT_S)
        fields: Sequence[dict[str, Any]] = described["fields"]
        dims = {f["name"]: f["params"].get("dim") for f in fields}
        if set(dims) != {ROW_FIELD, VECTOR_FIELD} or dims[VECTOR_FIELD] != spec.embedding_dim:
            raise ValueError(
                f"{name} at {access.uri} has the fields {dims}, but must have {ROW_FIELD} and "
                f"{VECTOR_FIELD} of {spec.embedding_dim} numbers. Load it anew: {load} --replace"
            )
        client.load_collection(name, timeout=_LOAD_TIMEOUT_S)
        counted = client.query(
            name,
            filter="",
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=_START_TIMEOUT_S,
        )
        num_rows = int(counted[0]["count(*)"])
        if num_rows != spec.num_queries:
            raise ValueError(
                f"{name} at {access.uri} holds {num_rows} vectors, the bundle {spec.num_queries} "
                f"queries. Load it anew: {load} --replace"
            )
    except MilvusException as error:
        raise ValueError(f"{name} at {access.uri} cannot be used: {error.message}") from None
    except grpc.RpcError as error:  # as it is: pymilvus does not try again after a deadline
        raise ValueError(f"{name} at {access.uri} cannot be used: {error.code().name}") from None
    finally:
        client.close()
