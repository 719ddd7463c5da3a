"""A port for several processes. Knows nothing of what they say on it."""

import socket
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def shared_port(host: str, port: int) -> Generator[int]:
    """Keeps a port for processes that all listen on it, and gives its number.

    It only holds the name: without listening, it is given no connection.

    Args:
        host: Address to listen on, IPv6 ones in brackets.
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
            holder.bind(address)
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}") from None
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
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    with socket.socket(family, kind) as holder:
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(address)
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        yield holder
