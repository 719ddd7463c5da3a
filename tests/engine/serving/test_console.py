"""Lines for the operator that cannot be printed."""

import subprocess
import sys
from pathlib import Path

import pytest

TALKING = """
from engine.serving.console import complain, say
for _ in range(2):
    say("what nobody will read")
    complain("neither this")
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_stream_that_the_shell_has_closed_ends_nothing(closed):
    run = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, TALKING],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, "Traceback" in run.stderr) == (0, False)
    said = run.stdout if closed == "2>&-" else run.stderr
    assert said.count("queryrec-engine: ") >= 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_line_for_which_the_disk_has_no_room_is_lost_and_ends_nothing(stream):
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-c", TALKING],
            stdout=full if stream == "stdout" else subprocess.PIPE,
            stderr=full if stream == "stderr" else subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert "Traceback" not in f"{run.stdout}{run.stderr}"
    if stream == "stdout":
        assert run.returncode == 0
        assert run.stderr.count("queryrec-engine: neither this\n") == 2
    else:
        assert run.stdout.count("queryrec-engine: what nobody will read\n") == 2


def test_lines_come_out_in_order_and_before_an_early_end():
    program = (
        "import sys\nfrom engine.serving.console import complain, say\n"
        "for i in range(1000): (say, complain)[i % 2](str(i))\nsys.exit(3)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert run.returncode == 3
    assert run.stdout.splitlines() == [f"queryrec-engine: {i}" for i in range(1000)]
