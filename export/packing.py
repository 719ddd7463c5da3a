"""How a directory comes into being: aside, then renamed, all or nothing; a bundle's hashes, too.

Knows nothing of what is in a bundle.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from engine.formats.manifest import Manifest, sha256_of, write_manifest


def check_free(target: Path) -> None:
    """Checks that nothing is written over.

    Raises:
        ValueError: `target` exists.
    """
    if target.exists():
        raise ValueError(f"{target}: exists already; nothing is written over it")


@contextmanager
def packed(target: Path) -> Iterator[Path]:
    """Gives an empty directory that becomes `target` at the end, or vanishes on an error.

    What a process that was killed left there goes first.

    Raises:
        ValueError: `target` exists or cannot be written, or another process writes it.
    """
    partial = target.with_name(target.name + ".partial")
    with _locked(partial.with_name(partial.name + ".lock"), target):
        check_free(target)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _locked(path: Path, target: Path) -> Iterator[None]:
    """Holds a lock file, which goes at the end. The system frees that of a killed process."""
    try:
        lock = _opened(path)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_ours = False  # held, or removed by a process that held it when it was opened
        if not is_ours:
            raise ValueError(
                f"{target}: another process writes it; wait for that or choose another --out"
            )
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


def sealed(directory: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest with the hashes of all files that are there, and the id they make."""
    files = {
        str(p.relative_to(directory)): sha256_of(p)
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }
    replace = msgspec.structs.replace
    manifest = replace(manifest, files=files)
    # All that decides answers: not when it was made, nor what was measured on the way.
    told = replace(manifest, bundle_id="", created_at="", parity={}, quality={}, provenance={})
    told_sha256 = hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()
    manifest = replace(manifest, bundle_id=told_sha256[:16])
    write_manifest(directory, manifest)
    return manifest
