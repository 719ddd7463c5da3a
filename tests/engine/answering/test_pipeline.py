"""The pipeline with real models of random weights: what it answers, and what it leaves out."""

import asyncio
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from engine.answering.answer import Answer
from engine.errors import DeadlineUnreachable, QueueFull
from engine.execution.bundle import Bundle
from engine.execution.runtime import Runtime
from engine.execution.warmup import warm_up
from engine.feedback.attribution import Source
from engine.formats.blocklist import Blocklist
from engine.formats.prompt import PromptRenderer, SideInformation
from engine.scheduling.costs import Work
from engine.scheduling.planner import ENCODE, SCORED_SIZES, score_work
from engine.scheduling.stages import Left, Omission, Stage, Why
from tests.engine.answering.conftest import CONFIG, ask, make, texts, without


async def test_in_ample_time_nothing_is_left_out(bundle, runtime):
    answer = await ask(make(bundle, runtime), "never searched before")
    assert len(set(texts(answer))) == 6
    assert answer.omissions == ()


async def test_answers_do_not_depend_on_who_asks_at_the_same_time(bundle, runtime):
    queries = [f"odd thing {i}" for i in range(12)]
    alone = [await ask(make(bundle, runtime), q) for q in queries]
    pipeline = make(bundle, runtime)
    together = await asyncio.gather(*(ask(pipeline, q) for q in queries))
    assert [texts(a) for a in together] == [texts(a) for a in alone]


async def test_without_a_generator_the_log_answers(bundle, runtime):
    answer = await ask(make(without(bundle, "generator"), runtime), "wireless mouse")
    assert len(answer.suggestions) == 6
    assert {s.source for s in answer.suggestions} == {Source.LOG}
    assert answer.omissions == (Omission(Stage.GENERATE, Left.SKIPPED, Why.NOT_IN_BUNDLE),)


async def test_texts_that_the_log_does_not_know_are_calibrated_apart(bundle, runtime):
    spec = bundle.manifest.click_model
    low = msgspec.structs.replace(spec, unknown_calibration={"completion": (1.0, -50.0)})
    manifest = msgspec.structs.replace(bundle.manifest, click_model=low)
    pipeline = make(dataclasses.replace(bundle, manifest=manifest), runtime)
    answer = await ask(pipeline, "wireless e", scenario="completion")
    known = [s.source & Source.LOG != 0 for s in answer.suggestions]
    assert any(known)
    assert known == sorted(known, reverse=True), "what the log knows comes first"
    for suggestion, is_known in zip(answer.suggestions, known, strict=True):
        assert is_known or suggestion.click_probability < 1e-12


async def test_without_a_click_model_priors_stand_for_its_probabilities(bundle, runtime):
    pipeline = make(without(bundle, "click_model"), runtime)
    answer = await ask(pipeline, "wireless m", scenario="completion")
    assert Omission(Stage.SCORE, Left.SKIPPED, Why.NOT_IN_BUNDLE) in answer.omissions
    assert answer.suggestions
    assert all(0 < s.click_probability < 1 for s in answer.suggestions)


async def test_a_cold_start_without_an_index_is_answered_by_the_generator(bundle, runtime):
    answer = await ask(make(without(bundle, "index"), runtime), "wireless mouse")
    assert answer.suggestions
    assert {s.source for s in answer.suggestions} == {Source.GENERATED}
    assert answer.omissions == (Omission(Stage.RETRIEVE, Left.SKIPPED, Why.NOT_IN_BUNDLE),)


async def test_without_an_encoder_popular_queries_answer_what_the_log_does_not_know(
    bundle, runtime
):
    answer = await ask(make(without(bundle, "encoder"), runtime), "never searched")
    assert len(answer.suggestions) == 6
    assert Omission(Stage.ENCODE, Left.SKIPPED, Why.NOT_IN_BUNDLE) in answer.omissions


async def test_an_empty_bundle_gives_an_empty_answer(bundle, runtime):
    parts = ("encoder", "generator", "click_model", "index")
    answer = await ask(make(without(bundle, *parts), runtime), "anything")
    assert answer.suggestions == ()


class Broken:
    """A model that fails."""

    def run(self, *arguments: object) -> object:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("part", "stage"),
    [
        ("encoder", Stage.ENCODE),
        ("generator", Stage.GENERATE),
        ("click_model", Stage.SCORE),
    ],
)
async def test_a_failing_model_is_left_out(bundle, runtime, part, stage):
    broken = dataclasses.replace(bundle, **{part: Broken()})
    answer = await ask(make(broken, runtime), "never searched before")
    assert len(answer.suggestions) == 6
    assert answer.omissions == (Omission(stage, Left.SKIPPED, Why.FAILURE),)


async def test_when_time_is_short_the_answer_comes_from_the_log_and_says_so(bundle, runtime):
    pipeline = make(bundle, runtime)
    kinds = {r.work for r in bundle.rungs["suggestion"]} | {ENCODE}
    for work in kinds | {score_work(n) for n in SCORED_SIZES}:
        pipeline.worker.models.costs.observe(work, 1, 100.0)
    answer = await ask(pipeline, "never searched before", budget_s=30)
    assert len(answer.suggestions) == 6
    assert answer.omissions == (
        Omission(Stage.ENCODE, Left.SKIPPED, Why.BUDGET),
        Omission(Stage.GENERATE, Left.SKIPPED, Why.BUDGET),
        Omission(Stage.SCORE, Left.SKIPPED, Why.BUDGET),
    )


class Recorded:
    """A model that says when it runs."""

    def __init__(self, name: str, model: Any, runs: list[str]) -> None:
        self._name, self._model, self._runs = name, model, runs

    def run(self, rows: Sequence[Any], *arguments: Any) -> Any:
        self._runs.append(self._name)
        return self._model.run(rows, *arguments)


async def test_what_was_generated_is_scored_before_a_younger_request_is_generated_for(
    bundle, runtime
):
    runs: list[str] = []
    recorded = dataclasses.replace(
        bundle,
        generator=Recorded("generate", bundle.generator, runs),
        click_model=Recorded("score", bundle.click_model, runs),
    )
    models = msgspec.structs.replace(CONFIG.models, max_batch_size=1)
    pipeline = make(recorded, runtime, msgspec.structs.replace(CONFIG, models=models))
    older = ask(pipeline, "wireless mouse", budget_s=20.0)
    await asyncio.gather(older, ask(pipeline, "kitchen lamp", budget_s=30.0))
    assert runs == ["generate", "score"] * 2


async def test_a_smaller_run_that_scores_all_candidates_is_no_omission(bundle, runtime):
    """Few candidates take a smaller run, so time for 32 of them is not missed."""
    pipeline = make(without(bundle, "index"), runtime)
    await ask(pipeline, "wireless mouse")  # generates for the next
    for num, cost_s in zip(SCORED_SIZES, (100.0, 100.0, 0.001), strict=True):
        pipeline.worker.models.costs.observe(score_work(num), 1, cost_s)
    answer = await ask(pipeline, "wireless mouse")
    assert 0 < len(answer.suggestions) <= SCORED_SIZES[-1]
    assert Stage.SCORE not in {o.stage for o in answer.omissions}


async def test_a_run_that_failed_is_not_learnt_as_the_way_back(bundle, runtime):
    class Slow(Broken):
        def run(self, *arguments: object) -> object:
            time.sleep(2)
            return super().run(*arguments)

    pipeline = make(dataclasses.replace(bundle, click_model=Slow()), runtime)
    await ask(pipeline, "wireless mouse")
    await asyncio.sleep(0)
    assert pipeline._reserve.of(30.0) < 1.5 + CONFIG.server.reserve_ms / 1000


async def test_warming_up_learns_what_everything_costs(bundle, runtime, monkeypatch):
    models = msgspec.structs.replace(CONFIG.models, max_batch_size=2)
    pipeline = make(bundle, runtime, msgspec.structs.replace(CONFIG, models=models))
    costs, observed = pipeline.worker.models.costs, set[tuple[Work, int]]()
    observe = costs.observe

    def noted(work: Work, batch_size: int, elapsed_s: float) -> None:
        observed.add((work, batch_size))
        observe(work, batch_size, elapsed_s)

    monkeypatch.setattr(costs, "observe", noted)
    await warm_up(bundle, pipeline.worker)
    kinds = {r.work for rungs in bundle.rungs.values() for r in rungs} | {ENCODE}
    for work in kinds | {score_work(n) for n in SCORED_SIZES}:
        assert {size for kind, size in observed if kind == work} == {1, 2}


async def test_a_deadline_that_has_passed_is_refused(bundle, runtime):
    with pytest.raises(DeadlineUnreachable):
        await ask(make(bundle, runtime), "anything", budget_s=-1)


async def with_a_queue_of_one(bundle: Bundle, runtime: Runtime) -> list[Answer | BaseException]:
    models = msgspec.structs.replace(CONFIG.models, max_waiting=1, max_batch_size=1)
    pipeline = make(bundle, runtime, msgspec.structs.replace(CONFIG, models=models))
    return await asyncio.gather(
        *(ask(pipeline, f"odd thing {i}") for i in range(8)), return_exceptions=True
    )


async def test_what_finds_the_queue_full_is_answered_from_the_log(bundle, runtime):
    answers = await with_a_queue_of_one(bundle, runtime)
    assert all(isinstance(a, Answer) and len(a.suggestions) == 6 for a in answers)
    overloaded = Omission(Stage.GENERATE, Left.SKIPPED, Why.OVERLOAD)
    assert any(isinstance(a, Answer) and overloaded in a.omissions for a in answers)


async def test_a_full_queue_refuses_what_the_log_cannot_answer(bundle, runtime):
    outcomes = await with_a_queue_of_one(without(bundle, "index"), runtime)
    kinds = Counter(type(o) for o in outcomes)
    assert kinds[QueueFull] > 0
    assert kinds[Answer] > 0
    assert set(kinds) == {QueueFull, Answer}


async def test_blocked_words_never_come_back(bundle, runtime):
    before = texts(await ask(make(bundle, runtime), "wireless mouse", num_suggestions=20))
    word = before[0].split()[0]
    pipeline = make(bundle, runtime, blocklist=Blocklist([word]))
    after = texts(await ask(pipeline, "wireless mouse", num_suggestions=20))
    assert after
    assert not any(word in t.split() for t in after)


async def test_exploration_swaps_neighbours_and_says_with_which_probability(bundle, runtime):
    ranking = msgspec.structs.replace(CONFIG.ranking, exploration_rate=1.0)
    config = msgspec.structs.replace(CONFIG, ranking=ranking)
    usual = texts(await ask(make(bundle, runtime), "wireless mouse"))
    explored = make(bundle, runtime, config, randomness=random.Random(1))
    seen = set()
    for _ in range(10):
        answer = await ask(explored, "wireless mouse")
        assert sorted(texts(answer)) == sorted(usual)
        for place, suggestion in enumerate(answer.suggestions):
            assert abs(usual.index(suggestion.text) - place) <= 1
            moved = suggestion.text != usual[place]
            assert suggestion.propensity == (0.25 if moved else 0.75 if place in (0, 5) else 0.5)
        seen.add(tuple(texts(answer)))
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("context", "is_public"),
    [
        ({}, True),
        ({"session_queries": ("known", "known")}, True),
        ({"session_queries": ("known", "my own words")}, False),
        ({"answer": "a text"}, False),
        ({"side_information": (SideInformation("answer", "a text"),)}, False),
        ({"side_information": (SideInformation("title", "a text"),)}, True),
        ({"side_information": tuple(SideInformation(k, "a") for k in ("title", "answer"))}, False),
    ],
)
async def test_an_answer_is_public_if_all_that_models_read_is(bundle, runtime, context, is_public):
    told = dict(context)
    if queries := told.get("session_queries"):
        told["session_queries"] = tuple(q.replace("known", bundle.index.text(0)) for q in queries)
    assert (await ask(make(bundle, runtime), "wireless mouse", **told)).is_public == is_public
    if "session_queries" in told:
        cold = make(without(bundle, "index"), runtime)
        assert not (await ask(cold, "wireless mouse", **told)).is_public


async def test_kinds_that_the_bundle_does_not_know_change_nothing_and_leave_an_answer_public(
    bundle, runtime
):
    prompt = msgspec.structs.replace(bundle.manifest.prompt, side_information_kinds=["cooccurring"])
    manifest = msgspec.structs.replace(bundle.manifest, prompt=prompt)
    renderer = PromptRenderer(bundle.vocabulary, prompt, manifest.scenarios)
    pipeline = make(dataclasses.replace(bundle, manifest=manifest, renderer=renderer), runtime)
    bare = await ask(pipeline, "never searched before")
    title = SideInformation("title", "a text")
    told = await ask(
        pipeline,
        "never searched before",
        session_queries=("my own words",),
        answer="a text",
        side_information=(title,),
    )
    assert told.is_public
    assert texts(told) == texts(bare)
    [omission] = told.omissions  # the very same input
    assert (omission.stage, omission.reason) == (Stage.GENERATE, Why.CACHED)


async def test_a_cancelled_request_leaves_the_pipeline_usable(bundle, runtime):
    pipeline = make(bundle, runtime)
    task = asyncio.ensure_future(ask(pipeline, "never searched before"))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await ask(pipeline, "wireless mouse")).suggestions
