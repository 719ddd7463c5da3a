"""A port for several processes: shared with them, and with nobody else."""

import select
import socket

import pytest

from engine.serving.ports import address_of, check_free, shared_port
from tests.ipv6 import needs_ipv6

HOST = "127.0.0.1"


def listener(port: int = 0, *, shares: bool) -> socket.socket:
    listening = socket.socket()
    if shares:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((HOST, port))
    listening.listen()
    return listening


def test_a_free_port_is_found_and_those_who_share_it_get_the_connections():
    with (
        shared_port(HOST, 0) as port,
        listener(port, shares=True) as one,
        listener(port, shares=True) as two,
    ):
        counts = [0, 0]
        for _ in range(40):  # none goes to the one who only holds the name
            with socket.create_connection((HOST, port), timeout=5) as client:
                name = client.getsockname()
                select.select([one, two], [], [], 30)
                for i, listening in enumerate((one, two)):
                    listening.setblocking(False)
                    try:
                        accepted, address = listening.accept()
                    except BlockingIOError:
                        continue
                    with accepted:
                        assert address == name
                        counts[i] += 1
        assert sum(counts) == 40
        assert min(counts) > 0


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_a_stranger_has_is_refused_even_if_it_would_share(shares):
    with listener(shares=shares) as stranger:
        port = stranger.getsockname()[1]
        with (
            pytest.raises(ValueError, match=f"cannot listen on {HOST}:{port}: .*in use"),
            shared_port(HOST, port),
        ):
            pass


def leave_in_time_wait(port: int) -> None:
    """As an engine leaves connections that it closes when it ends."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
        with socket.create_connection((HOST, port), timeout=5) as client:
            listening.accept()[0].close()
            assert client.recv(1) == b""


def test_connections_of_an_engine_that_has_ended_keep_nobody_from_its_port():
    with listener(shares=False) as free:
        port = free.getsockname()[1]
    leave_in_time_wait(port)
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind((HOST, port))  # the system has not forgotten them
    check_free(HOST, port)
    with shared_port(HOST, port):
        pass


def test_a_port_that_is_held_is_taken_by_nobody_who_would_not_share_it():
    with shared_port(HOST, 0) as port, pytest.raises(ValueError, match="in use"):
        check_free(HOST, port)


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_may_be_in_brackets(host):
    with shared_port(host, 0) as port, socket.socket(socket.AF_INET6) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("::1", port))
        assert address_of(host, port) == f"[::1]:{port}"


def test_a_system_that_cannot_share_ports_is_told_what_to_do(monkeypatch):
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(ValueError, match=r"server\.workers above 1"), shared_port(HOST, 0):
        pass


def test_an_address_of_no_machine_is_refused_by_name():
    with (
        pytest.raises(ValueError, match=r"cannot listen on 192\.0\.2\.1:50051"),
        shared_port("192.0.2.1", 50051),
    ):
        pass
