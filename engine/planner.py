"""The plan of a request: how much work fits the time that is left. Runs nothing itself.

What is given up first, in order of what it costs the answer: generated suggestions (fewer slots),
their length (fewer new tokens), the generator, scored candidates, the click model, the encoder.
The last rung, queries from exact look-ups or the most popular ones, needs no model at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from engine.costs import Work
from engine.manifest import GeneratorSpec, ScenarioSpec
from engine.prompt import spread
from engine.stages import Left, Omission, Stage, Why

ENCODE = Work(Stage.ENCODE)
SCORED_SIZES = (32, 16, 8)  # candidates per request, most first; rows are padded to one of these


def score_work(num_candidates: int) -> Work:
    """Returns the kind of work of scoring that many candidates; at most SCORED_SIZES[0]."""
    return Work(Stage.SCORE, (next(s for s in reversed(SCORED_SIZES) if s >= num_candidates),))


class Costs(Protocol):
    """Predicts run times; see `engine.costs`."""

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


class Load(NamedTuple):
    """What is ahead of a request."""

    wait_s: float = 0.0  # until the worker is free
    batch_size: int = 1  # rows of the batch it would join, itself included


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The stages a request would go through at full quality; absent models are absent here."""

    encode: bool
    rungs: Sequence[Rung] = ()  # best first
    score: bool = False


class Plan(NamedTuple):
    """What to do."""

    encode: bool
    rung: Rung | None
    num_scored: int  # candidates to score at most
    omissions: tuple[Omission, ...]  # what was wanted and does not fit


def make_plan(costs: Costs, wanted: Wanted, left_s: float, load: Load) -> Plan:
    """Returns the best plan whose predicted time, waiting included, is at most `left_s`.

    The plan that runs no model is returned if nothing else fits.
    """
    options = _options(wanted)
    chosen = next(
        (o for o in options if load.wait_s + _cost_s(costs, o, load.batch_size) <= left_s),
        options[-1],
    )
    best = options[0]
    if chosen is best:
        return Plan(*best, ())
    # If the full plan fits an idle engine, other requests are what is in the way.
    why = Why.OVERLOAD if _cost_s(costs, best, 1) <= left_s else Why.BUDGET
    omissions: list[Omission] = []
    if best.encode and not chosen.encode:
        omissions.append(Omission(Stage.ENCODE, Left.SKIPPED, why))
    if best.rung != chosen.rung:
        kind = Left.DEGRADED if chosen.rung else Left.SKIPPED
        omissions.append(Omission(Stage.GENERATE, kind, why))
    if best.num_scored != chosen.num_scored:
        kind = Left.DEGRADED if chosen.num_scored else Left.SKIPPED
        omissions.append(Omission(Stage.SCORE, kind, why))
    return Plan(*chosen, tuple(omissions))


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
    auxiliary = [scenario.max_auxiliary_tokens] if scenario.has_auxiliary_text else []
    num_texts = len(slot_ids) - len(auxiliary)
    half, short = max(1, (num_texts + 1) // 2), max(1, scenario.max_new_tokens * 3 // 4)
    rungs: list[Rung] = []
    for num, max_new in (
        (num_texts, scenario.max_new_tokens),
        (half, scenario.max_new_tokens),
        (half, short),
    ):
        limits = [min(n, generator.max_new_tokens) for n in [*auxiliary, *[max_new] * num]]
        if generator.mode == "list":  # one sequence; each text ends with one more token
            total = min(sum(limits) + len(limits), generator.max_new_tokens)
            rung = Rung((list_id,), (total,))
        else:
            texts = spread(slot_ids[len(auxiliary) :], num)
            rung = Rung((*slot_ids[: len(auxiliary)], *texts), tuple(limits))
        if rung not in rungs:
            rungs.append(rung)
    return tuple(rungs)


class _Option(NamedTuple):
    encode: bool
    rung: Rung | None
    num_scored: int


def _options(wanted: Wanted) -> list[_Option]:
    sizes = SCORED_SIZES if wanted.score else (0,)
    options = [_Option(wanted.encode, rung, sizes[0]) for rung in wanted.rungs]
    options += [_Option(wanted.encode, None, size) for size in sizes]
    options += [_Option(wanted.encode, None, 0), _Option(False, None, 0)]
    return options


def _cost_s(costs: Costs, option: _Option, batch_size: int) -> float:
    cost_s = costs.predict_s(ENCODE, batch_size) if option.encode else 0.0
    if option.rung:
        cost_s += costs.predict_s(option.rung.work, batch_size)
    if option.num_scored:
        cost_s += costs.predict_s(score_work(option.num_scored), batch_size)
    return cost_s
