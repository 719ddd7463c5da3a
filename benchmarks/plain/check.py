"""Do the plain stack and an engine's bundle of the same run say the same?"""

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.plain.recommender import Recommender, Written
from engine.answering.answer import Answer, Question
from engine.answering.pipeline import Pipeline
from engine.config import CacheConfig, Config
from engine.execution.bundle import Bundle, load_bundle
from engine.execution.runtime import Runtime
from engine.scheduling.deadline import MonotonicClock
from engine.scheduling.stages import Probe

_BATCH_SIZE = 8


class Agreement(NamedTuple):
    """Shares of what is equal, over all questions."""

    num_texts: int  # that the engine's generator wrote
    equal_texts: float  # of these, what the plain stack wrote in the same place
    num_suggestions: int  # of the engine's answers, completions left out
    equal_suggestions: float  # of these, what the plain stack shows for the same question


def agreement(
    recommender: Recommender, bundle_directory: Path, questions: Sequence[Question]
) -> Agreement:
    """Compares what both write for the same prompts, and what both show.

    Raises:
        ValueError: the bundle cannot be used.
    """
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    try:
        bundle = load_bundle(bundle_directory, runtime)
        ours = asyncio.run(_answers(bundle, runtime, questions))
        num_texts = num_equal = num_shown = num_shared = 0
        for start in range(0, len(questions), _BATCH_SIZE):
            batch = questions[start : start + _BATCH_SIZE]
            written = recommender.written(batch)
            pairs = list(itertools.chain(*(_texts(bundle, w) for w in written)))
            num_texts += len(pairs)
            num_equal += sum(a == b for a, b in pairs)
            for question, answer, theirs in zip(
                batch, ours[start : start + len(batch)], recommender.answers(batch), strict=True
            ):
                if not question.scenario.completes_prefix:
                    shown = {s.text for s in theirs.suggestions}
                    num_shown += len(answer.suggestions)
                    num_shared += sum(s.text in shown for s in answer.suggestions)
    finally:
        runtime.close()
    return Agreement(
        num_texts, num_equal / max(1, num_texts), num_shown, num_shared / max(1, num_shown)
    )


async def _answers(bundle: Bundle, runtime: Runtime, questions: Iterable[Question]) -> list[Answer]:
    """Returns the engine's full answers, one after another."""
    clock = MonotonicClock()
    pipeline = Pipeline(bundle, runtime, Config(cache=CacheConfig(max_bytes=0)), clock)
    try:
        return [await pipeline.recommend(q, Probe(clock)) for q in questions]
    finally:
        await pipeline.worker.close()


def _texts(bundle: Bundle, written: Written) -> list[tuple[bytes, bytes]]:
    """Returns what both write for the same prompt, by slot."""
    assert bundle.generator is not None
    (ours,) = bundle.generator.run([written.row])
    read = bundle.vocabulary.bytes_of
    return [(read(a), read(b)) for a, b in zip(ours.ids, written.sequences.ids, strict=True)]
