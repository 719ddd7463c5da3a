"""Work of other processes is told from our own."""

import subprocess
import sys
import time

from benchmarks.peers.machine import Neighbours, cpu_model


def busy(seconds: float) -> subprocess.Popen[bytes]:
    code = f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: 0"
    return subprocess.Popen([sys.executable, "-c", code])


def test_others_are_those_that_are_not_ours() -> None:
    with busy(1.0) as process:
        time.sleep(0.1)  # until it has started
        with_it, without_it = Neighbours([process.pid]), Neighbours([])
        while process.poll() is None and (without_it.share() or 0) < 0.002:
            time.sleep(0.05)
        ours, others = with_it.share(), without_it.share()
        process.kill()
    assert ours is not None
    assert others is not None
    assert ours < others


def test_the_cpu_has_a_name() -> None:
    assert cpu_model()
