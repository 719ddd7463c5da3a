"""What to send, checked. Knows nothing of command lines or of how it is sent."""

import math
from dataclasses import dataclass
from typing import Literal

from benchmarks.load.rates import Burst, Rate

MAX_REQUESTS = 2_000_000
_MAX_BURSTS = 1_000_000
_RESOLVERS = ("dns:", "ipv4:", "ipv6:", "unix:", "xds:")  # of gRPC

Arrivals = Literal["poisson", "constant", "replay"]
Prompts = Literal["cycle", "order", "distinct", "zipf"]


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
    duration_s: float = 30.0  # of a replay: later lines are left out
    budget_ms: float = 50.0
    deadline_ms: float = 1000.0
    mix: dict[str, float]
    prompts: Prompts = "cycle"
    zipf_exponent: float = 1.0
    seed: int = 0
    num_connections: int = 4
    is_idle: bool = False
    is_tls: bool = False
    root_certificates: bytes | None = None  # PEM; None for those that gRPC comes with
    metadata: tuple[tuple[str, str], ...] = ()  # of every call

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
        if self.burst is not None:
            self._check_burst(self.burst)
        num_requests = self._num_expected()
        if num_requests > MAX_REQUESTS:
            raise ValueError(
                f"{num_requests:.0f} requests are asked for in {self.duration_s:g} seconds; at "
                f"most {MAX_REQUESTS} are sent"
            )
        if not 1 <= self.num_connections <= 256:
            raise ValueError(f"--connections is {self.num_connections}; it must be from 1 to 256")
        if not self.queries:
            raise ValueError("--queries has no query; it needs one a line")
        if "://" in self.target and not self.target.startswith(_RESOLVERS):
            raise ValueError(
                f"--target is {self.target}; write HOST:PORT, with --tls where a server wants it"
            )

    def rate(self) -> Rate:
        """Returns the rate over time, of what is no replay."""
        end_rps = self.rate_rps if self.ramp_to_rps is None else self.ramp_to_rps
        return Rate(self.rate_rps, end_rps, self.burst, self.duration_s)

    def _check_burst(self, burst: Burst) -> None:
        first_s = burst.every_s - burst.length_s
        if first_s >= self.duration_s:
            raise ValueError(
                f"--burst comes after {first_s:g} seconds for the first time, and --duration is "
                f"{self.duration_s:g}"
            )
        if self.duration_s / burst.every_s > _MAX_BURSTS:
            raise ValueError(
                f"--burst has an interval of {burst.every_s:g} seconds; at most {_MAX_BURSTS} "
                "bursts are sent"
            )

    def _num_expected(self) -> float:
        if self.is_idle:
            return 0.0
        if self.arrivals == "replay":
            return sum(time_s <= self.duration_s for time_s in self.times_s)
        return self.rate().num_expected
