"""Servers for measurements: one that dies is not silent."""

import os
from pathlib import Path

from benchmarks.served import _running

DYING = """
import sys
print("dying: listening on 127.0.0.1:1")
print("dying: serving")
sys.stdout.flush()
print("\\n".join(f"line {i}" for i in range(100)), file=sys.stderr)
sys.exit("no memory left")
"""


def test_the_last_words_of_a_server_that_died_are_told(tmp_path: Path, capsys):
    (tmp_path / "dying.py").write_text(DYING)
    with _running(["dying"], {"PYTHONPATH": str(tmp_path)}) as server:
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "dying ended with exit status 1:"
    assert told[-2:] == ["line 99", "no memory left"]
    assert "line 0" not in told
