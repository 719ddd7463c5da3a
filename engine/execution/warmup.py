"""Warm-up: runs every kind of work at every batch size before the first request comes.

First runs are slow, and the planner needs to know what everything costs. Knows nothing of gRPC.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from engine.execution.bundle import Bundle
from engine.execution.models import GenerateRow, ScoreRow
from engine.execution.runner import LookupRow
from engine.execution.worker import Worker
from engine.formats.features import FEATURE_NAMES
from engine.formats.manifest import MAX_CANDIDATE_TOKENS, MAX_ENCODER_TOKENS, Manifest
from engine.formats.vocabulary import FIRST_TEXT_ID
from engine.scheduling.costs import Work
from engine.scheduling.planner import ENCODE, SCORED_SIZES, score_work

MakeRow = Callable[[], object]


class Lengths(NamedTuple):
    """Of what models read, in tokens."""

    query: int
    prompt: int
    candidate: int

    @classmethod
    def usual(cls, manifest: Manifest) -> "Lengths":
        """Returns those that costs are learnt of: prompts may get as long."""
        return cls(query=8, prompt=manifest.prompt.max_tokens, candidate=6)

    @classmethod
    def longest(cls, manifest: Manifest) -> "Lengths":
        """Returns the greatest that there can be."""
        return cls(MAX_ENCODER_TOKENS, manifest.prompt.max_tokens, MAX_CANDIDATE_TOKENS)


_SHORTEST = Lengths(1, 1, 1)


async def warm_up(
    bundle: Bundle,
    worker: Worker,
    *,
    is_index_only: bool = False,
    is_beside_others: bool = False,
    is_compiled: bool = False,
    report: Callable[[Work, int, float], None] | None = None,
) -> None:
    """Runs all models of a bundle on random ids, at 1, 2, 4 and so on rows at the same time.

    Args:
        bundle: What to warm.
        worker: Runs it, and learns the costs.
        is_index_only: Whether its models are warm and their costs known: only look-ups are run.
        is_beside_others: Whether another bundle answers meanwhile, which long runs would hold up:
            only single rows are run. What more rows cost is then learnt from requests.
        is_compiled: Whether the device compiles a graph for the range of shapes that it has seen:
            the smallest and the largest there are come first, so that no request finds its shape
            new. Also beside another bundle, whose answers this may hold up for as long.
        report: Called with each kind of work, batch size and seconds that it should take.
    """
    most = worker.max_rows
    num_sizes = 1 if is_beside_others else most.bit_length() + 1
    sizes = sorted({min(1 << i, most) for i in range(num_sizes)})
    if is_compiled and not is_index_only:
        for lengths, size in ((_SHORTEST, 1), (Lengths.longest(bundle.manifest), most)):
            for work, make_row in kinds_of_work(bundle, lengths):
                await worker.models.prepare(work, [make_row() for _ in range(size)])
    for work, make_row in kinds_of_work(bundle):
        if is_index_only and work != ENCODE:
            continue
        for size in sizes:
            await worker.models.warm(work, [make_row() for _ in range(size)])
            if report is not None:
                report(work, size, worker.models.costs.predict_s(work, size))


def kinds_of_work(bundle: Bundle, lengths: Lengths | None = None) -> Iterator[tuple[Work, MakeRow]]:
    """Yields each kind of work that a bundle needs, and what makes a random row of it.

    Args:
        bundle: Says which kinds there are.
        lengths: Of the rows; None: the usual ones.
    """
    lengths = lengths or Lengths.usual(bundle.manifest)
    rng, vocabulary_size = random.Random(0), bundle.vocabulary.size

    def ids(num: int) -> list[int]:
        return [rng.randrange(FIRST_TEXT_ID, vocabulary_size) for _ in range(num)]

    full_range = (FIRST_TEXT_ID, vocabulary_size)
    if bundle.manifest.encoder is not None and bundle.index is not None:
        yield ENCODE, lambda: LookupRow("", ids(lengths.query))
    seen: set[Work] = set()
    for rung in (r for rungs in bundle.rungs.values() for r in rungs):
        if rung.work not in seen:
            seen.add(rung.work)
            yield rung.work, lambda rung=rung: GenerateRow(ids(lengths.prompt), full_range, rung)
    if bundle.manifest.click_model is not None:
        for size in SCORED_SIZES:
            features = np.zeros((size, len(FEATURE_NAMES)), np.float32)
            yield (
                score_work(size),
                lambda size=size, features=features: ScoreRow(
                    ids(lengths.prompt), [ids(lengths.candidate) for _ in range(size)], features
                ),
            )
