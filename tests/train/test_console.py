"""What ends a command with one line, and what keeps its traceback."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from safetensors.numpy import save_file
from transformers import AutoConfig
from typer.testing import CliRunner

from train.cli import app
from train.console import user_errors


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """Lets no file grow beyond a size, as a full disk or a quota would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


NUMBERS = np.zeros(10_000, np.float32)
WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: path.write_bytes(NUMBERS.tobytes()),
    "numpy": lambda path: np.save(path, NUMBERS),
    "safetensors": lambda path: save_file({"a": NUMBERS}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_with_what_was_written_to(
    writer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, user_errors(tmp_path / "run"), small_files(1000):
        WRITERS[writer](tmp_path / "file")
    assert ended.value.exit_code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path}/run: cannot be written (")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nowhere/a", "nowhere/a: cannot be read (No such file or directory)"),
        ("file/a", "file/a: cannot be read or written (Not a directory)"),
        (".", ": cannot be read or written (Is a directory)"),
        ("loop", "loop: cannot be read or written (Too many levels of symbolic links)"),
        ("a" * 300, "aaa: cannot be read or written (File name too long)"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    path: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(typer.Exit) as ended, user_errors(tmp_path):
        (tmp_path / path).read_bytes()
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err.endswith(f"{told}\n")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_fails_is_told(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, user_errors(tmp_path):
        raise OSError(number, os.strerror(number), "file")
    assert ended.value.exit_code == 2
    told = f"error: file: cannot be read or written ({os.strerror(number)})\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("read", "told"),
    [(AutoConfig.from_pretrained, "config.json"), (lambda p: pq.read_table(p / "a"), "/a")],
    ids=["transformers", "pyarrow"],
)
def test_what_a_library_says_of_a_file_is_told(
    read: Callable[[Path], object],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit), user_errors(tmp_path):
        read(tmp_path)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBADF, os.strerror(errno.EBADF), "file"),
        KeyError("name"),
        ModuleNotFoundError("train.nothing", name="train.nothing"),
    ],
    ids=repr,
)
def test_what_is_no_mistake_of_the_user_passes(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, user_errors(tmp_path):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("name", ["my.tsv", "my.tsv/below"])
def test_a_run_that_is_a_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "my.tsv").write_text("s1\t1\tred shoes\n")
    result = CliRunner().invoke(app, ["run", "--run", str(tmp_path / name), "--size", "tiny"])
    assert result.exit_code == 2, result.output
    assert str(tmp_path / "my.tsv") in result.stderr
    assert result.stderr.count("\n") == 1
