"""Log lines of a real process: none waits for its reader, and none is lost at the end."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# A machine that stands still for a second loses lines at the end, as it should.
PATIENT = "writing._FLUSH_S = 60\n"
BEGIN = """
import logging, sys
from engine.telemetry import logs, writing
logs.set_up("json", "info", worker=2)
log = logging.getLogger("engine.test")
"""
# 3 MB: more than a pipe holds, and more lines than may wait.
FLOOD = """
for number in range(15_000):
    log.info(str(number), extra={"padding": 100 * "x"})
print("goes on", flush=True)
sys.stdin.readline()
"""
GO_ON = """
writing.flush()
log.info("last")
"""


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[str]]:
    """A program whose stderr is a pipe."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", BEGIN + program]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_lines_that_nobody_reads_hold_nothing_up_and_are_counted_once_somebody_does():
    with running(PATIENT + FLOOD + GO_ON) as process:
        assert process.stdout
        assert process.stdout.readline() == "goes on\n"  # before anything is read
        _, log = process.communicate("\n", timeout=60)
    *events, last = [json.loads(line)["event"] for line in log.splitlines()]
    assert last == "last"
    next_number, all_lost = 0, 0
    for event in events:  # each line, or how many are missing, at their place
        told = re.match(r"(\d+) log lines lost", event)
        all_lost += int(told[1]) if told else 0
        assert told or event == str(next_number)
        next_number += int(told[1]) if told else 1
    assert next_number == 15_000
    assert all_lost > 0
    assert all(json.loads(line)["worker"] == 2 for line in log.splitlines())


def test_lines_that_nobody_reads_do_not_keep_a_process_from_its_end():
    with running(FLOOD) as process:
        assert process.stdout
        assert process.stdout.readline() == "goes on\n"
        assert process.stdin
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("end", ["", "sys.exit(0)"])
def test_what_was_logged_before_the_end_is_written(end):
    with running(f"{PATIENT}for i in range(1000): log.info(str(i))\n{end}") as process:
        _, log = process.communicate(timeout=60)
    assert [json.loads(line)["event"] for line in log.splitlines()] == [str(i) for i in range(1000)]
    assert process.returncode == 0


def test_a_flush_puts_lines_before_what_is_printed_next():
    program = "log.info('one')\nwriting.flush()\nprint('two', file=sys.stderr)"
    with running(PATIENT + program) as process:
        _, text = process.communicate(timeout=60)
    assert [line[:5] for line in text.splitlines()] == ['{"tim', "two"]


def test_a_process_without_stderr_writes_its_lines_nowhere(tmp_path):
    program = f"{BEGIN}file = open({str(tmp_path / 'a')!r}, 'w')\nlog.info('lost')"
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "a").read_bytes() == b""
