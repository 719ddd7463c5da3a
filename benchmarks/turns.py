"""Times contenders in turns, so that a slow minute of the machine is everybody's."""

import time
from collections.abc import Callable, Mapping


def times_ms(
    runs: Mapping[str, Callable[[], object]],
    num_rounds: int,
    *,
    num_warm: int = 1,
    pause_s: float = 0.0,
) -> dict[str, list[float]]:
    """Returns milliseconds by contender, one of each round.

    Args:
        runs: what is timed, by name.
        num_rounds: that count; in each, all run once.
        num_warm: rounds before them, which do not.
        pause_s: before each run: threads of the one before stop spinning.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(num_warm + num_rounds):
        for name, run in runs.items():
            time.sleep(pause_s)
            start_s = time.perf_counter()
            run()
            if number >= num_warm:
                times[name].append((time.perf_counter() - start_s) * 1000)
    return times
