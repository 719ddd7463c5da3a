"""Ports for processes that cannot be asked to pick one."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_LOWEST = 10_000


def free_port(num: int = 1) -> int:
    """Returns the first of as many free ports one after the other.

    From below those that the system gives to whoever asks for any, so that none is taken by another
    test's connection before it is used.
    """
    given_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(_LOWEST, given_from - num)
        with ExitStack() as stack:
            try:
                for offset in range(num):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port
