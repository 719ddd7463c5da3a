"""What to send, checked. Knows nothing of command lines or of how it is sent."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

MAX_REQUESTS = 2_000_000

Arrivals = Literal["poisson", "constant", "replay"]
Prompts = Literal["cycle", "order", "distinct", "zipf"]


class Burst(NamedTuple):
    """Another rate, again and again."""

    rate_rps: float
    every_s: float
    length_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send; see the options of the command line."""

    target: str
    queries: tuple[str, ...]
    times_s: tuple[float, ...] = ()  # of the queries, for a replay
    arrivals: Arrivals = "poisson"
    rate_rps: float = 50.0
    ramp_to_rps: float | None = None  # by the end
    burst: Burst | None = None
    duration_s: float = 30.0
    budget_ms: float = 50.0
    deadline_ms: float = 1000.0
    mix: dict[str, float]
    prompts: Prompts = "cycle"
    zipf_exponent: float = 1.0
    seed: int = 0
    num_connections: int = 4
    is_idle: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a load of nonsense, with what would be right."""
        limits = [
            ("--rate", self.rate_rps, "requests a second", 100_000),
            ("--duration", self.duration_s, "seconds", 86_400),
            ("--budget-ms", self.budget_ms, "milliseconds", 60_000),
            ("--deadline-ms", self.deadline_ms, "milliseconds", 600_000),
            ("--zipf", self.zipf_exponent, "", 10),
        ]
        if self.ramp_to_rps is not None:
            limits.append(("--ramp-to", self.ramp_to_rps, "requests a second", 100_000))
        if self.burst is not None:
            limits += [
                ("--burst has a rate that", self.burst.rate_rps, "requests a second", 100_000),
                ("--burst has an interval that", self.burst.every_s, "seconds", 86_400),
                ("--burst has a length that", self.burst.length_s, "seconds", self.burst.every_s),
            ]
        for name, value, unit, most in limits:
            if not (math.isfinite(value) and 0 < value <= most):
                raise ValueError(
                    f"{name} is {value}; it must be above 0 and at most {most} {unit}".rstrip()
                )
        if self.deadline_ms < self.budget_ms:
            raise ValueError(
                f"--deadline-ms is {self.deadline_ms}, below --budget-ms of {self.budget_ms}: "
                "late answers would be cut off instead of measured"
            )
        peak_rps = max(
            self.rate_rps, self.ramp_to_rps or 0, self.burst.rate_rps if self.burst else 0
        )
        if peak_rps * self.duration_s > MAX_REQUESTS:
            raise ValueError(
                f"--rate {peak_rps} for --duration {self.duration_s} are "
                f"{peak_rps * self.duration_s:.0f} requests; at most {MAX_REQUESTS} are sent"
            )
        if not 1 <= self.num_connections <= 256:
            raise ValueError(f"--connections is {self.num_connections}; it must be from 1 to 256")
        if not self.queries:
            raise ValueError("--queries has no query; it needs one a line")
