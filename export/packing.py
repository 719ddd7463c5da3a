"""How a directory comes into being: aside, then renamed, all or nothing; a bundle's hashes, too.

Knows nothing of what is in a bundle.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.formats.manifest import Manifest, sha256_of, write_manifest
from train.locks import locked


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
    with locked(
        partial.with_name(partial.name + ".lock"),
        hindered=f"{target}: cannot be written",
        busy=f"{target}: another process writes it; wait for that or choose another --out",
    ):
        check_free(target)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


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
