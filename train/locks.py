"""Locks that a process holds on what it writes, so that no other writes there meanwhile."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def locked(path: Path, *, hindered: str, busy: str) -> Iterator[None]:
    """Holds a lock file, which goes at the end. The system frees that of a killed process.

    Args:
        path: the file; its directory is made if need be.
        hindered: what to say if it cannot be made; the reason follows in brackets.
        busy: what to say if another process holds it.

    Raises:
        ValueError: either.
    """
    try:
        lock = _opened(path)
    except OSError as error:
        raise ValueError(f"{hindered} ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_ours = False  # held, or removed by a process that held it when it was opened
        if not is_ours:
            raise ValueError(busy)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
