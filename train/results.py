"""The directory that an evaluation's files go to, tried before the work and filled after it.

Knows nothing of what is written.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

_TRIED_BYTES = 1 << 20  # about as much as results take


@contextmanager
def results_in(out: Path) -> Iterator[None]:
    """Makes the directory and tries to write to it; what it made goes again after an error.

    Raises:
        ValueError: it cannot be written, before or after the work; the message names --out.
    """
    made = [p for p in (out, *out.parents) if not p.exists()]
    try:
        with _told(out):
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out) as stream:
                stream.write(bytes(_TRIED_BYTES))
        yield
    except BaseException:
        with suppress(OSError):  # something is in it, or it was not made
            for directory in made:
                directory.rmdir()
        raise


def write_results(out: Path, results: Mapping[str, msgspec.Struct | str]) -> str:
    """Writes structs as JSON and texts as they are, by file name; returns their paths for people.

    Raises:
        ValueError: the directory cannot be written; the message names --out.
    """
    with _told(out):
        for name, content in results.items():
            if isinstance(content, str):
                (out / name).write_text(content, encoding="utf-8")
            else:
                json = msgspec.json.format(msgspec.json.encode(content))
                (out / name).write_bytes(json + b"\n")
    return ", ".join(str(out / name) for name in results)


@contextmanager
def _told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror})") from None
