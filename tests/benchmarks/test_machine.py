"""Work of other processes is told from our own."""

import subprocess
import sys
import time

from benchmarks.peers.machine import Neighbours, cpu_model


def busy(seconds: float) -> subprocess.Popen[bytes]:
    code = f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: 0"
    return subprocess.Popen([sys.executable, "-c", code])


def test_others_are_those_that_are_not_ours() -> None:
    with busy(60.0) as process:
        with_it, without_it = Neighbours([process.pid]), Neighbours([])
        until_s = time.monotonic() + 30
        while (with_it.share() or 0.0) >= (without_it.share() or 0.0):
            assert time.monotonic() < until_s
            time.sleep(0.05)
        process.kill()


def test_the_cpu_has_a_name() -> None:
    assert cpu_model()
