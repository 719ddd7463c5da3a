"""Servers for measurements: a process of their own that serves until the block ends."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from engine.formats.manifest import read_manifest, sha256_of, write_manifest

_LISTENING = ": listening on "
_SERVING = ": serving"
_SHARED_FILES = ("tokenizer.json", "index/texts.bin", "index/hnsw.faiss")  # of run and bundle
_STOP_TIMEOUT_S = 60.0
_LAST_LINES = 20  # of what a server that died wrote to stderr


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    target: str  # HOST:PORT
    pid: int

    def reload(self) -> None:
        """Has it look where its bundle's link leads now."""
        os.kill(self.pid, signal.SIGHUP)

    def resident_bytes(self) -> int:
        """Returns the resident memory of its processes."""
        main = psutil.Process(self.pid)
        return sum(p.memory_info().rss for p in (main, *main.children(recursive=True)))


@contextmanager
def served(bundle: Path, settings: Mapping[str, str]) -> Iterator[Served]:
    """Serves a bundle with the engine on a free port.

    Args:
        bundle: Its directory.
        settings: Environment variables, beside those of this process.

    Raises:
        ValueError: the engine does not start; says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {"QUERYREC_FEEDBACK_DIRECTORY": f"{folder}/feedback", **settings}
        command = ["engine", "serve", "--bundle", str(bundle), "--port", "0"]
        with _running(command, environment) as server:
            yield server


@contextmanager
def served_plainly(run: Path, *options: str) -> Iterator[Served]:
    """Serves a run with the plain stack on a free port.

    Args:
        run: Its directory.
        options: Of `python -m benchmarks.plain serve`; without any it is tuned to this machine.

    Raises:
        ValueError: it does not start; says why.
    """
    with _running(["benchmarks.plain", "serve", "--run", str(run), *options], {}) as server:
        yield server


def point(link: Path, bundle: Path) -> None:
    """Moves a link that an engine serves to another bundle, in one step."""
    aside = link.with_name("next")
    aside.symlink_to(bundle.resolve())
    aside.replace(link)


def mismatch(run: Path, bundle: Path) -> str:
    """Returns why a bundle was not made from a run; empty if it may have been."""
    files = read_manifest(bundle).files
    for name in _SHARED_FILES:
        if not (run / name).is_file() or files.get(name) != sha256_of(run / name):
            return f"{bundle} was not made from {run}: {name} differs"
    return ""


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Served]:
    """Runs a module that says where it listens, and when it serves."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "stderr.txt"
        with errors.open("w") as stderr_file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=subprocess.PIPE,
                stderr=stderr_file,
                text=True,
                env={**os.environ, **environment},
            )
        assert process.stdout is not None
        try:
            target = ""
            for line in process.stdout:
                if _LISTENING in line:
                    target = line.partition(_LISTENING)[2].strip()
                if _SERVING in line:
                    break
            else:
                raise ValueError(f"{command[0]} did not start: {errors.read_text().strip()}")
            try:
                yield Served(target, process.pid)
            finally:
                if process.poll() is not None:
                    lines = errors.read_text(errors="replace").splitlines()[-_LAST_LINES:]
                    end = f"{command[0]} ended with exit status {process.returncode}:"
                    print(end, *lines, sep="\n", file=sys.stderr)
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
