"""A bundle asked in this process: as the engine answers, whoever asks at the same time."""

import asyncio

import numpy as np
import pytest

from engine.answering.answer import Question
from engine.answering.pipeline import Pipeline
from engine.config import Config
from engine.execution.runtime import Runtime
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Probe, Stage, Why
from train.evaluation.served import Asked, ServedBundle

CLOCK = MonotonicClock()
QUESTIONS = [
    Asked("wireless mouse"),
    Asked("odd thing", ("garden lamp",)),
    Asked("gaming chair black", ("gaming chair", "chair"), "a chair for games"),
    *(Asked(f"thing {i}") for i in range(20)),
]


@pytest.mark.parametrize("scenario", ["suggestion", "completion"])
def test_answers_are_those_of_the_pipeline_one_by_one(served, scenario):
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    pipeline = Pipeline(served.bundle, runtime, Config(), CLOCK)

    async def one_by_one() -> list[list[str]]:
        texts = []
        for asked in QUESTIONS:
            question = Question(
                scenario=served.bundle.scenarios[scenario],
                query=asked.query,
                session_queries=asked.session_queries,
                answer=asked.answer,
                num_suggestions=6,
                deadline=Deadline.after(60, CLOCK),
            )
            answer = await pipeline.recommend(question, Probe(CLOCK))
            texts.append([s.text for s in answer.suggestions])
        return texts

    expected = asyncio.run(one_by_one())
    runtime.close()
    assert served.texts(scenario, QUESTIONS, 6) == expected


def test_what_is_written_and_retrieved_does_not_depend_on_the_batch(served):
    together = served.written("suggestion", QUESTIONS)
    found = served.retrieved("suggestion", QUESTIONS)
    for asked, texts, near in zip(QUESTIONS, together, found, strict=True):
        assert served.written("suggestion", [asked]) == [texts]
        assert served.retrieved("suggestion", [asked]) == [near]


def test_clicks_of_more_candidates_than_a_run_takes_are_those_one_by_one(served):
    texts = [f"wireless {i} mouse" for i in range(40)] + ["wireless mouse"]
    asked = QUESTIONS[2]
    together = served.click_probabilities("suggestion", asked, texts)
    assert together.shape == (41,)
    alone = [served.click_probabilities("suggestion", asked, [t])[0] for t in texts]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_embeddings_have_unit_norm(served):
    vectors = np.array(served.embeddings(["garden lamp", "x", "an odd query"]))
    np.testing.assert_allclose((vectors**2).sum(1), 1, rtol=1e-4)


def test_a_stage_that_fails_is_not_passed_over(tiny_bundle, monkeypatch):
    fresh = ServedBundle(tiny_bundle, num_threads=1)

    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(fresh.bundle.generator, "run", fail)
    with pytest.raises(
        ValueError, match=rf"{Stage.GENERATE} was left out \({Why.FAILURE.name.lower()}"
    ):
        fresh.answers("suggestion", [Asked("garden lamp")], 5)
    fresh.close()


def test_an_unknown_scenario_is_refused_with_those_there_are(served):
    with pytest.raises(ValueError, match="no scenario 'nosuch'; it has suggestion"):
        served.answers("nosuch", [Asked("x")], 5)
