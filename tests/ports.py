"""Ports for processes that cannot be asked to pick one."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_LOWEST = 10_000


def free_port(num: int = 1) -> int:
    """Returns the first of as many free ports one after the other.

    From below those that the system gives to whoever asks for any, so that none is taken by another
    test's connection before it is used; where it gives them from `_LOWEST` on or does not tell,
    from those.
    """
    while True:
        port = _drawn(num)
        with ExitStack() as stack:
            try:
                for offset in range(num):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except (OSError, OverflowError):
                continue
            return port


def _drawn(num: int) -> int:
    try:
        given_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        given_from = 0
    if given_from - num > _LOWEST:
        return random.SystemRandom().randrange(_LOWEST, given_from - num)
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        return given.getsockname()[1]
