"""The stages of a request, how long each took, and what was left out. Knows no stage's work."""

from collections.abc import Iterable
from enum import Enum, StrEnum
from typing import NamedTuple

from engine.scheduling.deadline import Clock


class Stage(StrEnum):
    """A part of a request's way through the engine."""

    TOTAL = "total"
    QUEUE = "queue"
    NORMALISE = "normalise"
    RETRIEVE = "retrieve"
    TOKENISE = "tokenise"
    ENCODE = "encode"
    GENERATE = "generate"
    SCORE = "score"
    MERGE = "merge"
    RERANK = "rerank"


class Left(Enum):
    """Whether a stage ran at all."""

    SKIPPED = 1
    DEGRADED = 2


class Why(Enum):
    """Why a stage did less."""

    BUDGET = 1
    NOT_IN_BUNDLE = 2
    OVERLOAD = 3
    FAILURE = 4
    CACHED = 5


class Omission(NamedTuple):
    """One stage that did less than the scenario asks for."""

    stage: Stage
    kind: Left
    reason: Why

    @property
    def is_harmless(self) -> bool:
        """Whether the answer is still as good as the bundle can give."""
        return self.reason in (Why.NOT_IN_BUNDLE, Why.CACHED)


class Effort(StrEnum):
    """How much went into an answer."""

    FULL = "full"  # nothing that the bundle has was left out; a cached result is no worse
    REDUCED = "reduced"  # something was, but texts were generated
    RANKED = "ranked"  # nothing was generated; the click model ranked past searches
    LOOKUP = "lookup"  # neither was done

    @classmethod
    def of(cls, omissions: Iterable[Omission]) -> "Effort":
        """Returns the effort of an answer that left these out."""
        omissions = list(omissions)
        if all(o.is_harmless for o in omissions):
            return cls.FULL
        skipped = [
            o.stage for o in omissions if o.kind is Left.SKIPPED and o.reason is not Why.CACHED
        ]
        if Stage.GENERATE not in skipped:
            return cls.REDUCED
        return cls.LOOKUP if Stage.SCORE in skipped else cls.RANKED


class Span:
    """A `with` block whose time a stage takes. A generator would cost three times as much."""

    __slots__ = ("_clock", "_probe", "_stage", "_started_s")

    def __init__(self, probe: "Probe", stage: Stage, clock: Clock) -> None:
        """Starts no time yet."""
        self._probe = probe
        self._stage = stage
        self._clock = clock

    def __enter__(self) -> None:
        """Starts the time."""
        self._started_s = self._clock.now_s()

    def __exit__(self, *_: object) -> None:
        """Adds it to the stage."""
        self._probe.add(self._stage, self._clock.now_s() - self._started_s)


class Probe:
    """Collects the stage times of one request. Not thread-safe."""

    def __init__(self, clock: Clock, started_s: float | None = None) -> None:
        """Starts the total at `started_s`, or now."""
        self._clock = clock
        self._started_s = clock.now_s() if started_s is None else started_s
        self._elapsed_s: dict[Stage, float] = {}

    def during(self, stage: Stage) -> "Span":
        """Adds the time spent inside the `with` block to a stage."""
        return Span(self, stage, self._clock)

    def add(self, stage: Stage, elapsed_s: float, *, ago_s: float = 0.0) -> None:
        """Adds time to a stage, which ended `ago_s` before now (only traces tell when)."""
        self._elapsed_s[stage] = self._elapsed_s.get(stage, 0.0) + elapsed_s

    def elapsed_s(self, stage: Stage) -> float:
        """Returns the time that a stage has taken so far."""
        return self._elapsed_s.get(stage, 0.0)

    def finish(self) -> tuple[tuple[Stage, float], ...]:
        """Returns (stage, seconds): the total until now first, then stages as they began."""
        total_s = self._clock.now_s() - self._started_s
        return ((Stage.TOTAL, total_s), *self._elapsed_s.items())
