"""What callers get under load, by the engine's policies alone, on simulated time.

Each case plays traffic against a bundle whose models are replaced by what their runs cost (see
`benchmarks/simulation.py`), so the figures depend on policies, not on this machine. `capacity` is
how many full answers a second the simulated machine makes one after the other; the budget is 100
ms. Progress goes to stderr; the last line of stdout is one JSON object, case -> shares.

    python -m benchmarks.policies --bundle DIR
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.simulation import (
    PLANS,
    Arrival,
    Machine,
    Outcome,
    SimulatedLoop,
    capacity_rps,
    play,
    poisson,
    simulate,
    summary,
)
from engine.config import Config
from engine.execution.bundle import Bundle, load_bundle
from engine.execution.runtime import Runtime
from engine.formats.manifest import read_manifest
from engine.scheduling.costs import Work
from engine.scheduling.stages import Stage

MakeMachine = Callable[[SimulatedLoop], Machine]
Case = tuple[Iterable[Arrival], MakeMachine]


def cases(bundle: Bundle, duration_s: float) -> dict[str, Case]:
    """Returns traffic and machine by the name of the case."""
    rate_rps = capacity_rps(bundle)
    middle_s = duration_s / 2

    def steady(load: float) -> Iterable[Arrival]:
        return poisson(load * rate_rps, duration_s)

    def slow(work: Work, now_s: float) -> float:
        is_slow = work.stage is Stage.GENERATE and middle_s <= now_s < middle_s + 5
        return 10.0 if is_slow else 1.0

    burst = (Arrival(middle_s, f"burst {i}") for i in range(50))
    stalls_s = [(middle_s, 0.2)]
    result: dict[str, Case] = {f"{x} x capacity": (steady(x), Machine) for x in (0.5, 0.8, 3.0)}
    result["burst of 50"] = ([*steady(0.5), *burst], Machine)
    result["generation x 10 for 5 s"] = (steady(0.5), lambda c: Machine(c, slowdown=slow))
    result["one run in 100 raises"] = (steady(0.5), lambda c: Machine(c, failure_rate=0.01))
    result["stall of 200 ms"] = (steady(0.5), lambda c: Machine(c, stalls_s=stalls_s))
    return result


def floods(bundle: Bundle, duration_s: float) -> dict[str, Iterable[Arrival]]:
    """Returns traffic of two scenarios, one of them at three times the capacity, if there are."""
    if len(bundle.scenarios) < 2:
        return {}
    first, second, *_ = sorted(bundle.scenarios, reverse=True)
    return {
        f"{calm} beside a flood of {flood}": [
            *poisson(3 * capacity_rps(bundle, flood), duration_s, scenario=flood),
            *poisson(0.2 * capacity_rps(bundle, calm), duration_s, scenario=calm),
        ]
        for calm, flood in ((first, second), (second, first))
    }


def played(bundle: Bundle, arrivals: Iterable[Arrival], machine: MakeMachine) -> list[Outcome]:
    """Returns what became of the requests."""

    async def main(loop: SimulatedLoop) -> list[Outcome]:
        outcomes, _ = await play(bundle, arrivals, machine(loop), loop, Config())
        return outcomes

    return simulate(main)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table and the last line; exits with status 2 if there is nothing to play."""
    parser = argparse.ArgumentParser(description="Policies under load, on simulated time.")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--duration", type=float, default=30.0, metavar="SECONDS", help="simulated")
    arguments = parser.parse_args(argv)
    if not 10 <= arguments.duration <= 3600:
        parser.error(f"--duration is {arguments.duration}; it must be from 10 to 3600 seconds")
    try:
        if read_manifest(arguments.bundle).generator is None:
            raise ValueError(f"{arguments.bundle}: has no generator; policies plan what it writes")
        bundle = load_bundle(arguments.bundle, Runtime(num_threads=1))
    except ValueError as error:
        parser.error(str(error))
    results: dict[str, dict[str, Any]] = {}
    for name, (arrivals, machine) in cases(bundle, arguments.duration).items():
        print(f"{name} ...", file=sys.stderr)
        results[name] = summary(played(bundle, arrivals, machine))
    for name, arrivals in floods(bundle, arguments.duration).items():
        print(f"{name} ...", file=sys.stderr)
        calm = name.split(" ", 1)[0]
        outcomes = played(bundle, arrivals, Machine)
        results[name] = summary([o for o in outcomes if o.arrival.scenario == calm])
    _print_table(results)
    print(json.dumps(results))


def _print_table(results: dict[str, dict[str, Any]]) -> None:
    width = max(map(len, results))
    heads = ("in budget", *PLANS, "refused")
    print(" " * width, *(f"{head:>16}" for head in heads))
    for name, result in results.items():
        shares = (result["in_budget"], *result["by_plan"].values(), result["refused"])
        print(f"{name:{width}}", *(f"{share:16.3f}" for share in shares))


if __name__ == "__main__":
    main()
