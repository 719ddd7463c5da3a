"""How tests of the pipeline ask it."""

import dataclasses
from typing import Any

import msgspec

from engine.answering.answer import Answer, Question
from engine.answering.pipeline import Pipeline
from engine.config import Config
from engine.execution.bundle import Bundle
from engine.execution.runtime import Runtime
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Probe

CLOCK = MonotonicClock()
CONFIG = Config()


def without(bundle: Bundle, *parts: str) -> Bundle:
    changes: dict[str, Any] = dict.fromkeys(parts)
    if "generator" in parts:
        changes["rungs"] = dict.fromkeys(bundle.scenarios, ())
    manifest = msgspec.structs.replace(bundle.manifest, **dict.fromkeys(parts))
    return dataclasses.replace(bundle, manifest=manifest, **changes)


async def ask(
    pipeline: Pipeline,
    query: str,
    *,
    scenario: str = "suggestion",
    budget_s: float = 30.0,
    **fields,
) -> Answer:
    question = Question(
        scenario=pipeline.bundle.scenarios[scenario],
        query=query,
        deadline=Deadline.after(budget_s, CLOCK),
        **{"num_suggestions": 6, **fields},
    )
    return await pipeline.recommend(question, Probe(CLOCK))


def make(bundle: Bundle, runtime: Runtime, config: Config = CONFIG, **options) -> Pipeline:
    return Pipeline(bundle, runtime, config, CLOCK, **options)


def texts(answer: Answer) -> list[str]:
    return [s.text for s in answer.suggestions]
