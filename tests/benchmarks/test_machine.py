"""Work of other processes is told from our own."""

import subprocess
import sys
import time

import psutil

from benchmarks.peers.machine import Neighbours, cpu_model


def busy(seconds: float) -> subprocess.Popen[bytes]:
    code = f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: 0"
    return subprocess.Popen([sys.executable, "-c", code])


def test_others_are_those_that_are_not_ours() -> None:
    with busy(60.0) as process:
        try:
            without_it, with_it = Neighbours([]), Neighbours([process.pid])
            own = psutil.Process(process.pid)
            before_s, begun_s = sum(own.cpu_times()[:2]), time.monotonic()
            while sum(own.cpu_times()[:2]) < before_s + 2:
                time.sleep(0.05)
            used = (sum(own.cpu_times()[:2]) - before_s) / (time.monotonic() - begun_s)
            told = (without_it.share() or 0.0) - (with_it.share() or 0.0)
            assert told * (psutil.cpu_count() or 1) > 0.5 * used
        finally:
            process.kill()


def test_the_cpu_has_a_name() -> None:
    assert cpu_model()
