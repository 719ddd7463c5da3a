"""A port for several processes. Knows nothing of what they say on it."""

import socket
from collections.abc import Generator
from contextlib import contextmanager


def address_of(host: str, port: int) -> str:
    """Returns HOST:PORT, an IPv6 host in brackets, whether or not it came in some."""
    bare = without_brackets(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def without_brackets(host: str) -> str:
    """Returns a host without the brackets that an IPv6 one may be in."""
    return host.strip("[]")


@contextmanager
def shared_port(host: str, port: int) -> Generator[int]:
    """Keeps a port for processes that all listen on it, and gives its number.

    It only holds the name: without listening, it is given no connection.

    Args:
        host: Address to listen on.
        port: 0 picks a free one.

    Raises:
        ValueError: another program has the port, or the system cannot share one.
    """
    reuse = getattr(socket, "SO_REUSEPORT", None)
    if reuse is None:
        raise ValueError(
            "this system has no SO_REUSEPORT, which server.workers above 1 needs: set it to 1 and "
            "run several engines on ports of their own"
        )
    with _holding(host, port) as alone:  # whom a stranger that shares its port does not let in
        family, kind, address = alone.family, alone.type, alone.getsockname()
    with socket.socket(family, kind) as holder:
        try:
            holder.setsockopt(socket.SOL_SOCKET, reuse, 1)
            # Past connections that the system has yet to forget (TIME_WAIT) keep nobody out. Taken
            # back at once: a stranger that sets it, too, would be let in.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(address)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        yield holder.getsockname()[1]


def check_free(host: str, port: int) -> None:
    """Checks that a process can have a port for itself.

    Raises:
        ValueError: another program has it, or there is no such host.
    """
    with _holding(host, port):
        pass


@contextmanager
def _holding(host: str, port: int) -> Generator[socket.socket]:
    """Keeps a port that is shared with nobody."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            without_brackets(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    with socket.socket(family, kind) as holder:
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(address)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        yield holder


def _cannot_listen(host: str, port: int, error: OSError) -> ValueError:
    return ValueError(f"cannot listen on {address_of(host, port)}: {error.strerror}")
