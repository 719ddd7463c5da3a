"""Engines for measurements: a process of their own that serves a bundle until the block ends."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from engine.formats.manifest import read_manifest, write_manifest

_LISTENING = "queryrec-engine: listening on "
_SERVING = "queryrec-engine: serving"
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """A running engine."""

    target: str  # HOST:PORT
    pid: int

    def resident_bytes(self) -> int:
        """Returns the resident memory of its processes."""
        main = psutil.Process(self.pid)
        return sum(p.memory_info().rss for p in (main, *main.children(recursive=True)))


@contextmanager
def served(bundle: Path, settings: Mapping[str, str]) -> Iterator[Served]:
    """Serves a bundle on a free port.

    Args:
        bundle: Its directory.
        settings: Environment variables, beside those of this process.

    Raises:
        ValueError: the engine does not start; says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "stderr.txt"
        with errors.open("w") as stderr_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "engine", "serve", "--bundle", bundle, "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=stderr_file,
                text=True,
                env={**os.environ, "QUERYREC_FEEDBACK_DIRECTORY": f"{folder}/feedback", **settings},
            )
        assert process.stdout is not None
        try:
            target = ""
            for line in process.stdout:
                if line.startswith(_LISTENING):
                    target = line.removeprefix(_LISTENING).strip()
                if line.startswith(_SERVING):
                    break
            else:
                raise ValueError(f"the engine did not start: {errors.read_text().strip()}")
            yield Served(target, process.pid)
        finally:
            process.terminate()
            process.wait(_STOP_TIMEOUT_S)
            process.stdout.close()


def write_lookup_bundle(bundle: Path, directory: Path) -> None:
    """Writes what a bundle is without its models: the index, and what reading it needs."""
    manifest = read_manifest(bundle)
    if manifest.index is None:
        raise ValueError(f"{bundle}: has no index to look up in")
    folder = f"{manifest.index.directory}/"
    files = {
        n: h for n, h in manifest.files.items() if n == "tokenizer.json" or n.startswith(folder)
    }
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes((bundle / name).read_bytes())
    bare = msgspec.structs.replace(
        manifest,
        bundle_id=f"{manifest.bundle_id}-lookup",
        encoder=None,
        generator=None,
        click_model=None,
        files=files,
    )
    write_manifest(directory, bare)
