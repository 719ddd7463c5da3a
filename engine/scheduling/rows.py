"""Rows that wait or run, and who waits for them. Knows nothing of when they leave."""

import asyncio
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)  # kind of work: only rows of one kind share a batch


class Done(NamedTuple):
    """A row's result and where its time went."""

    result: Any  # whatever `run` returned for the row; the callers of one kind know its type
    queue_s: float
    run_s: float
    batch_size: int


class Waiting(NamedTuple, Generic[K]):
    """A row that waits, as others see it."""

    flow: Hashable
    kind: K
    finish_by_s: float


@dataclass(eq=False, slots=True)
class Caller:
    """Somebody who waits for a row."""

    finish_by_s: float
    queued_s: float
    future: asyncio.Future[Done] = field(default_factory=asyncio.Future[Done])


@dataclass(eq=False, slots=True)
class Entry(Generic[K]):
    """A row and all who wait for it."""

    kind: K
    row: object
    flow: Hashable
    key: Hashable
    callers: list[Caller] = field(default_factory=list[Caller])
    end_s: float | None = None  # predicted, once it runs
    ends_by_s: float = math.inf  # when a run of it is given up, once it runs

    @property
    def finish_by_s(self) -> float:
        """When the first of its callers has no more use for it."""
        return min(c.finish_by_s for c in self.callers)

    @property
    def last_s(self) -> float:
        """When nobody has any more use for it."""
        return max((c.finish_by_s for c in self.callers), default=-math.inf)


@dataclass(eq=False, slots=True)
class Batch(Generic[K]):
    """Rows that run together."""

    entries: list[Entry[K]]
    started_s: float
    end_s: float  # predicted
    run: asyncio.Future[Any] | None = None  # set once it runs


def callers_of(entries: Iterable[Entry[K]]) -> list[Caller]:
    """Returns who still waits for any of the rows."""
    return [c for e in entries for c in e.callers if not c.future.done()]
