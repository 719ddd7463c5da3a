"""The plan of a request: how much work fits the time that is left. Runs nothing itself.

What is given up first, in order of what it costs the answer: generated suggestions (fewer slots),
their length (fewer new tokens), the generator, scored candidates, the click model, the encoder.
The last rung, queries from exact look-ups or the most popular ones, needs no model at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, Protocol

from engine.formats.manifest import GeneratorSpec, ScenarioSpec
from engine.formats.prompt import spread, token_limits
from engine.scheduling.costs import Work
from engine.scheduling.stages import Left, Omission, Stage, Why

ENCODE = Work(Stage.ENCODE)
SCORED_SIZES = (32, 16, 8)  # candidates per request, most first; rows are padded to one of these


def score_work(num_candidates: int) -> Work:
    """Returns the kind of work of scoring that many candidates; at most SCORED_SIZES[0]."""
    return Work(Stage.SCORE, (next(s for s in reversed(SCORED_SIZES) if s >= num_candidates),))


def works_of(encode: bool, rung: "Rung | None", num_scored: int) -> tuple[Work, ...]:
    """Returns the kinds of work of the stages of a request, in their order."""
    generate = (rung.work,) if rung else ()
    score = (score_work(num_scored),) if num_scored else ()
    return (*((ENCODE,) if encode else ()), *generate, *score)


class Costs(Protocol):
    """Predicts run times; see `engine.scheduling.costs`."""

    def predict_s(self, work: Work, batch_size: int) -> float:
        """Returns seconds that a batch of that size should take."""
        ...


class Rung(NamedTuple):
    """An amount of generation: S sequences, each with its first token and its limit."""

    slots: tuple[int, ...]  # (S) ids
    max_new_tokens: tuple[int, ...]  # (S)

    @property
    def work(self) -> Work:
        """Returns its kind of work: the decode loop runs as long as the longest limit."""
        return Work(Stage.GENERATE, (len(self.slots), max(self.max_new_tokens)))


Rows = Mapping[Work, int]


class Load(NamedTuple):
    """What is ahead of a request: rows that wait, and rows that requests are still to submit."""

    wait_s: float = 0.0  # until the worker has room
    own: Rows = MappingProxyType({})  # of the request's scenario, more urgent than itself
    others: Sequence[tuple[Rows, float]] = ()  # of each other scenario, and its lead in seconds
    max_rows: int = 1  # that run at the same time
    num_beside: int = 0  # rows that run on when the worker has room


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The stages a request would go through at full quality; absent models are absent here."""

    encode: bool
    rungs: Sequence[Rung] = ()  # best first
    num_scored: int = 0  # candidates at most; 0: no click model


class Plan(NamedTuple):
    """What to do."""

    encode: bool
    rung: Rung | None
    num_scored: int  # candidates to score at most
    omissions: tuple[Omission, ...]  # what was wanted and does not fit


def make_plan(
    costs: Costs, wanted: Wanted, left_s: float, load: Load, *, waited_s: float = 0.0
) -> Plan:
    """Returns the best plan whose predicted time, waiting included, is at most `left_s`.

    The plan that runs no model is returned if nothing else fits. The time of a plan is that of
    all rows ahead and its own, in full batches; scenarios take turns, so each of the others gets
    as much as the request's own at most, less what it has had before.

    Args:
        costs: Predicts.
        wanted: What would be best.
        left_s: Until the last stage must have ended.
        load: What is ahead.
        waited_s: How long the request has waited for the worker so far.
    """
    options = _options(wanted.encode, tuple(wanted.rungs), wanted.num_scored)
    ahead = _Ahead(costs, load)
    chosen = next((o for o in options if ahead.end_s(o.works) <= left_s), options[-1])
    best = options[0]
    if chosen is best:
        return Plan(best.encode, best.rung, best.num_scored, ())
    # If the full plan would have fitted an idle engine, other requests are what is in the way.
    alone_s = _Ahead(costs, Load()).end_s(best.works)
    why = Why.OVERLOAD if alone_s <= left_s + waited_s else Why.BUDGET
    omissions: list[Omission] = []
    if best.encode and not chosen.encode:
        omissions.append(Omission(Stage.ENCODE, Left.SKIPPED, why))
    if best.rung != chosen.rung:
        kind = Left.DEGRADED if chosen.rung else Left.SKIPPED
        omissions.append(Omission(Stage.GENERATE, kind, why))
    if best.num_scored != chosen.num_scored:
        kind = Left.DEGRADED if chosen.num_scored else Left.SKIPPED
        omissions.append(Omission(Stage.SCORE, kind, why))
    return Plan(chosen.encode, chosen.rung, chosen.num_scored, tuple(omissions))


def generation_rungs(
    scenario: ScenarioSpec, generator: GeneratorSpec, slot_ids: Sequence[int], list_id: int
) -> tuple[Rung, ...]:
    """Returns a scenario's amounts of generation, best first: full, fewer slots, fewer tokens.

    Args:
        scenario: The panel.
        generator: Mode and limits of the graph.
        slot_ids: First tokens of the slots or beams, the auxiliary text's first if there is one.
        list_id: First token of list mode.
    """
    num_auxiliary = int(scenario.has_auxiliary_text)
    num_texts = len(slot_ids) - num_auxiliary
    half, short = max(1, (num_texts + 1) // 2), max(1, scenario.max_new_tokens * 3 // 4)
    rungs: list[Rung] = []
    for num, max_new in (
        (num_texts, scenario.max_new_tokens),
        (half, scenario.max_new_tokens),
        (half, short),
    ):
        wanted = token_limits(scenario, generator.mode, num, max_new)
        limits = tuple(min(n, generator.max_new_tokens) for n in wanted)
        if generator.mode == "list":
            rung = Rung((list_id,), limits)
        else:
            texts = spread(slot_ids[num_auxiliary:], num)
            rung = Rung((*slot_ids[:num_auxiliary], *texts), limits)
        if rung not in rungs:
            rungs.append(rung)
    return tuple(rungs)


class _Option(NamedTuple):
    encode: bool
    rung: Rung | None
    num_scored: int
    works: tuple[Work, ...]  # of its stages


@lru_cache(1024)
def _options(encode: bool, rungs: tuple[Rung, ...], num_scored: int) -> tuple[_Option, ...]:
    """Returns the plans there are, best first; the last one runs no model."""
    sizes = (0,)
    if num_scored:
        most = score_work(num_scored).variant[0]
        sizes = (*(s for s in SCORED_SIZES if s <= most), 0)
    choices = [(encode, rung, sizes[0]) for rung in rungs]
    choices += [(encode, None, size) for size in sizes]
    if encode:
        choices.append((False, None, 0))
    return tuple(_Option(*choice, works_of(*choice)) for choice in choices)


class _Ahead:
    """What is ahead of a request, and when work of its own would end behind that."""

    def __init__(self, costs: Costs, load: Load) -> None:
        self._costs, self._load = costs, load
        self._own_s = self._rows_s(load.own)
        self._others = [(self._rows_s(rows), lead_s) for rows, lead_s in load.others]
        self._further_s: dict[Work, float] = {}

    def end_s(self, works: Sequence[Work]) -> float:
        """Returns seconds until one row of each of these kinds should have run; 0 for none."""
        if not works:
            return 0.0
        own_s = self._own_s + sum(map(self._one_more_s, works))
        others_s = sum(max(0.0, min(own_s - lead_s, rows_s)) for rows_s, lead_s in self._others)
        return self._load.wait_s + own_s + others_s

    def _one_more_s(self, work: Work) -> float:
        """Returns what a row adds to those of its kind that are ahead."""
        further_s = self._further_s.get(work)
        if further_s is None:
            num = self._load.own.get(work, 0)
            further_s = self._kind_s(work, num + 1) - self._kind_s(work, num)
            self._further_s[work] = further_s
        return further_s

    def _rows_s(self, rows: Rows) -> float:
        """Returns the seconds that rows take, those of a kind together."""
        return sum(self._kind_s(work, num) for work, num in rows.items())

    def _kind_s(self, work: Work, num: int) -> float:
        load, total_s = self._load, 0.0
        full, rest = divmod(num, load.max_rows)
        if full:
            total_s += full * self._costs.predict_s(work, load.max_rows)
        if rest:
            total_s += self._costs.predict_s(work, min(load.max_rows, rest + load.num_beside))
        return total_s
