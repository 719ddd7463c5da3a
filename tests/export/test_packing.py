"""A directory appears whole or not at all, and is written by one process at a time."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.packing import packed


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_two_at_once_do_not_mix(tmp_path):
    target = tmp_path / "new/bundle"
    with packed(target) as directory:
        (directory / "first").touch()
        with pytest.raises(ValueError, match="bundle: another process writes it"), packed(target):
            pass
        (directory / "second").touch()
    assert names(tmp_path / "new") == ["bundle"]
    assert names(target) == ["first", "second"]


def test_a_failure_leaves_nothing_and_frees_the_place(tmp_path):
    target = tmp_path / "bundle"

    def interrupted() -> None:
        with packed(target) as directory:
            (directory / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []
    with packed(target) as directory:
        (directory / "whole").touch()
    assert names(target) == ["whole"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    target = tmp_path / "bundle"
    script = (
        "import os, pathlib, signal, sys\n"
        "from export.packing import packed\n"
        "with packed(pathlib.Path(sys.argv[1])) as directory:\n"
        "    (directory / 'half').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) != []
    with packed(target) as directory:
        assert names(directory) == []
    assert names(tmp_path) == ["bundle"]
