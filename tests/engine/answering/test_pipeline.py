"""The pipeline with real models of random weights: what it answers, and what it leaves out."""

import asyncio
import dataclasses
import math
import random
import threading
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from engine.answering.answer import Answer, Question
from engine.answering.generation import Generation
from engine.answering.pipeline import Pipeline
from engine.answering.safety import Blocklist
from engine.config import Config
from engine.errors import DeadlineUnreachable, QueueFull
from engine.execution.bundle import Bundle, load_bundle
from engine.execution.models import GenerateRow, Sequences
from engine.execution.runtime import Runtime
from engine.execution.warmup import warm_up
from engine.feedback.attribution import Source
from engine.formats.completion import completed
from engine.formats.text import normalise
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.planner import ENCODE, SCORED_SIZES, score_work
from engine.scheduling.stages import Left, Omission, Probe, Stage, Why
from export.sample import write_sample_bundle

CLOCK = MonotonicClock()
CONFIG = Config()


def without(bundle: Bundle, *parts: str) -> Bundle:
    changes: dict[str, object] = dict.fromkeys(parts)
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


async def test_slots_that_agree_on_a_rare_prefix_are_asked_again_for_other_words(
    bundle, runtime, monkeypatch
):
    prefixes = ["q", "zq", "xa", "vv", "wirelessq", "q w", "zz r"]

    async def answers() -> list[set[str]]:
        pipeline = make(bundle, runtime)
        found = [await ask(pipeline, p, scenario="completion", num_suggestions=8) for p in prefixes]
        return [set(texts(a)) for a in found]

    more = await answers()
    monkeypatch.setattr("engine.answering.generation._MAX_OTHER_RANGES", 0)
    once = await answers()
    assert sum(map(len, more)) > sum(map(len, once))
    for prefix, found in zip(prefixes, more, strict=True):
        assert all(t.startswith(prefix) for t in found)


async def test_without_a_generator_the_log_answers(bundle, runtime):
    answer = await ask(make(without(bundle, "generator"), runtime), "wireless mouse")
    assert len(answer.suggestions) == 6
    assert {s.source for s in answer.suggestions} == {Source.LOG}
    assert answer.omissions == (Omission(Stage.GENERATE, Left.SKIPPED, Why.NOT_IN_BUNDLE),)


@pytest.mark.parametrize("prefix", ["earbuds", "qz", "wireless", "red e", "x"])
async def test_the_generator_alone_finds_five_completions_of_any_prefix(bundle, runtime, prefix):
    cold = make(without(bundle, "index"), runtime)
    answer = await ask(cold, prefix, scenario="completion", num_suggestions=5)
    assert len(set(texts(answer))) == 5
    assert all(t.startswith(prefix) for t in texts(answer))


@pytest.fixture(scope="module")
def searching(tmp_path_factory, runtime) -> Bundle:
    """A bundle whose generator searches, and says how probable its texts are."""
    directory = tmp_path_factory.mktemp("searching") / "bundle"
    write_sample_bundle(directory, mode="beam")
    return load_bundle(directory, runtime)


@pytest.mark.parametrize("prefix", ["wireless", "po", "zq"])
async def test_completions_without_clicks_go_by_log_and_generator(searching, runtime, prefix):
    index, rung = searching.index, searching.rungs["completion"][0]
    prompt = searching.renderer.generation_prompt("completion", prefix, [])
    (written,) = searching.generator.run([GenerateRow(prompt.ids, prompt.first_token_range, rung)])
    probability_of: dict[str, float] = {}
    for ids, logprob in zip(written.ids, written.logprobs, strict=True):
        text = completed(searching.vocabulary, prompt.healed, ids)
        probability_of.setdefault(normalise(text or ""), math.exp(logprob))
    known = [index.text(row) for row in range(len(index))]
    num_searches = sum(index.popularity(r) for r, t in enumerate(known) if t.startswith(prefix))

    def likelihood(text: str) -> float:
        row = index.find(text)
        share = 0.0 if row is None else index.popularity(row) / max(num_searches, 1)
        return 0.8 * share + 0.2 * probability_of.get(text, 0.0)

    pipeline = make(without(searching, "click_model"), runtime)
    found = texts(await ask(pipeline, prefix, scenario="completion", num_suggestions=8))
    assert len(found) == 8
    assert found == sorted(found, key=likelihood, reverse=True)
    completions = [t for t in {*known, *probability_of} - {prefix} if t.startswith(prefix)]
    best = max(completions, key=likelihood)
    assert found[0] == best


async def test_further_searches_say_nothing_of_how_probable_their_texts_are(
    searching, runtime, monkeypatch
):
    found: list[Sequences] = []
    more_sequences = Generation.more_sequences

    async def noted(self, request, prompt, sequences):
        found.extend([sequences, await more_sequences(self, request, prompt, sequences)])
        return found[-1]

    monkeypatch.setattr(Generation, "more_sequences", noted)
    cold = make(without(searching, "index"), runtime)
    answer = await ask(cold, "w", scenario="completion", num_suggestions=20)
    assert answer.suggestions
    first, both = found[:2]
    assert len(both.ids) > len(first.ids)
    num = len(first.ids)
    assert both.logprobs == [*first.logprobs, *[None] * (len(both.ids) - num)]


async def test_a_queue_that_fills_up_while_more_is_wanted_does_not_lose_the_answer(
    bundle, runtime, monkeypatch
):
    cold = without(bundle, "index")
    expected = texts(await ask(make(cold, runtime), "wirelessq", scenario="completion"))
    pipeline = make(cold, runtime)
    submit, calls = pipeline.worker.submit, []

    async def full_after_the_first(work, row, finish_by_s, scenario):
        if work.stage is Stage.GENERATE:
            calls.append(row)
            if len(calls) > 1:
                raise QueueFull("models")
        return await submit(work, row, finish_by_s, scenario)

    monkeypatch.setattr(pipeline.worker, "submit", full_after_the_first)
    monkeypatch.setattr("engine.answering.generation._MAX_OTHER_RANGES", 0)
    answer = await ask(pipeline, "wirelessq", scenario="completion")
    assert len(calls) == 2
    assert 0 < len(texts(answer)) < len(expected)
    assert Omission(Stage.GENERATE, Left.DEGRADED, Why.OVERLOAD) in answer.omissions


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


async def test_without_a_click_model_sources_take_turns(bundle, runtime):
    pipeline = make(without(bundle, "click_model"), runtime)
    answer = await ask(pipeline, "wireless m", scenario="completion")
    assert Omission(Stage.SCORE, Left.SKIPPED, Why.NOT_IN_BUNDLE) in answer.omissions
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


async def test_a_generation_that_is_late_is_left_out_and_helps_the_next_request(bundle, runtime):
    class Slow:
        def __init__(self) -> None:
            self.may_finish = threading.Event()

        def run(self, rows):
            assert self.may_finish.wait(30)
            return bundle.generator.run(rows)

    slow = Slow()
    pipeline = make(dataclasses.replace(bundle, generator=slow), runtime)
    answer = await ask(pipeline, "wireless mouse", scenario="completion", budget_s=0.2)
    assert answer.suggestions
    reasons = {o.stage: o.reason for o in answer.omissions}
    assert reasons[Stage.GENERATE] is Why.BUDGET  # nothing was ahead of it
    slow.may_finish.set()
    await runtime.run(lambda: None)  # the model thread has finished what it was doing
    again = await ask(pipeline, "wireless mouse", scenario="completion")
    assert Omission(Stage.GENERATE, Left.SKIPPED, Why.CACHED) in again.omissions


async def test_warming_up_learns_what_everything_costs(bundle, runtime):
    models = msgspec.structs.replace(CONFIG.models, max_batch_size=2)
    pipeline = make(bundle, runtime, msgspec.structs.replace(CONFIG, models=models))
    await warm_up(bundle, pipeline.worker)
    kinds = {r.work for rungs in bundle.rungs.values() for r in rungs} | {ENCODE}
    for work in kinds | {score_work(n) for n in SCORED_SIZES}:
        assert pipeline.worker.models.costs.predict_s(work, 1) > 0
        assert pipeline.worker.models.costs.predict_s(work, 2) > 0


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


async def test_the_session_changes_what_is_generated_and_is_part_of_the_cache_key(bundle, runtime):
    pipeline = make(without(bundle, "index"), runtime)
    alone = await ask(pipeline, "wireless mouse")
    with_session = await ask(pipeline, "wireless mouse", session_queries=("kitchen lamp",))
    assert Omission(Stage.GENERATE, Left.SKIPPED, Why.CACHED) not in with_session.omissions
    again = await ask(pipeline, "wireless mouse")
    assert Omission(Stage.GENERATE, Left.SKIPPED, Why.CACHED) in again.omissions
    assert texts(again) == texts(alone)


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


async def test_a_cancelled_request_leaves_the_pipeline_usable(bundle, runtime):
    pipeline = make(bundle, runtime)
    task = asyncio.ensure_future(ask(pipeline, "never searched before"))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await ask(pipeline, "wireless mouse")).suggestions


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)


class Counting:
    """A generator that counts its rows and holds the first batch until it is released."""

    def __init__(self, bundle: Bundle) -> None:
        self.may_finish = threading.Event()
        self.num_rows = 0
        self._generator = bundle.generator

    def run(self, rows):
        self.num_rows += len(rows)
        assert self.may_finish.wait(30)
        return self._generator.run(rows)


async def test_equal_questions_at_the_same_time_share_a_generation(bundle, runtime):
    generator = Counting(bundle)
    pipeline = make(dataclasses.replace(bundle, generator=generator), runtime)
    tasks = [asyncio.ensure_future(ask(pipeline, "wireless mouse")) for _ in range(5)]
    await until(lambda: pipeline.worker.num_shared == 4)
    generator.may_finish.set()
    answers = await asyncio.gather(*tasks)
    assert generator.num_rows == 1
    assert {a.omissions for a in answers} == {()}
    assert len({a.suggestions for a in answers}) == 1
    await ask(pipeline, "wireless mouse")
    worker = pipeline.worker
    assert (worker.num_misses, worker.num_shared, worker.num_hits) == (1, 4, 1)


async def test_an_equal_question_that_is_cancelled_takes_nothing_from_the_others(bundle, runtime):
    generator = Counting(bundle)
    pipeline = make(dataclasses.replace(bundle, generator=generator), runtime)
    tasks = [asyncio.ensure_future(ask(pipeline, "wireless mouse")) for _ in range(3)]
    await until(lambda: pipeline.worker.num_shared == 2)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    generator.may_finish.set()
    answers = await asyncio.gather(*tasks[1:])
    assert generator.num_rows == 1
    assert {a.omissions for a in answers} == {()}


async def test_a_better_generation_that_is_under_way_is_shared_whatever_the_plan(bundle, runtime):
    generator = Counting(bundle)
    pipeline = make(dataclasses.replace(bundle, generator=generator), runtime)
    full, *_ = bundle.rungs["completion"]
    first = asyncio.ensure_future(ask(pipeline, "wireless m", scenario="completion"))
    await until(lambda: generator.num_rows == 1)
    for _ in range(3):
        pipeline.worker.models.costs.observe(full.work, 1, 3600.0)  # a plan would give it up
    second = asyncio.ensure_future(ask(pipeline, "wireless m", scenario="completion"))
    await until(lambda: pipeline.worker.num_shared == 1)
    generator.may_finish.set()
    answers = await asyncio.gather(first, second)
    assert generator.num_rows == 1
    assert {a.omissions for a in answers} == {()}
