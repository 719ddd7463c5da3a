"""Completions: enough of any prefix, and in which order where nothing scores them."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest

from engine.answering.generation import Generation
from engine.errors import QueueFull
from engine.execution.bundle import Bundle, load_bundle
from engine.execution.models import GenerateRow, Sequences
from engine.formats.completion import completed
from engine.formats.index import CooccurrenceIndex, Edges, write_index
from engine.formats.text import normalise
from engine.scheduling.stages import Left, Omission, Stage, Why
from export.sample import write_sample_bundle
from tests.engine.answering.conftest import CONFIG, ask, make, texts, without


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
    assert first.logprobs is not None
    assert both.logprobs == [*first.logprobs, *[None] * (len(both.ids) - num)]


async def test_what_further_searches_wrote_is_not_generated_again(searching, runtime):
    class Counting:
        num_rows = 0

        def run(self, rows):
            self.num_rows += len(rows)
            return searching.generator.run(rows)

    generator = Counting()
    cold = dataclasses.replace(without(searching, "index"), generator=generator)
    pipeline = make(cold, runtime)
    first = await ask(pipeline, "w", scenario="completion", num_suggestions=20)
    num_rows = generator.num_rows
    assert num_rows > 1
    again = await ask(pipeline, "w", scenario="completion", num_suggestions=20)
    assert generator.num_rows == num_rows
    assert texts(again) == texts(first)
    assert Omission(Stage.GENERATE, Left.SKIPPED, Why.CACHED) in again.omissions


async def test_a_cached_part_does_not_hide_that_another_was_cut_short(bundle, runtime):
    cold = without(bundle, "index")
    pipeline = make(cold, runtime)
    prompt = bundle.renderer.generation_prompt("completion", "wirelessq ", [])
    # What follows a space is known already; the prefix itself gets the lesser rung.
    full = cold.rungs["completion"][0]
    await pipeline.worker.submit(
        full.work, GenerateRow(prompt.ids, prompt.first_token_range, full), math.inf, "completion"
    )
    for _ in range(20):
        pipeline.worker.models.costs.observe(full.work, 1, 3600.0)
    answer = await ask(pipeline, "wirelessq", scenario="completion", num_suggestions=20)
    assert Omission(Stage.GENERATE, Left.DEGRADED, Why.BUDGET) in answer.omissions


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


async def test_completions_of_completions_have_the_figures_of_the_log(bundle, runtime, tmp_path):
    searches = {"red hat": 8, "red shoe": 9, "red shoe box": 7, "shoe box": 20, "shoe rack": 30}
    num = len(searches)
    nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
    write_index(
        tmp_path,
        texts=list(searches),
        popularity=np.array(list(searches.values()), np.float32),
        edges=Edges(np.zeros(num + 1, np.int64), *nothing),
        embeddings=np.eye(num, dtype=np.float32),
    )
    spec = msgspec.structs.replace(bundle.manifest.index, num_queries=num, embedding_dim=num)
    log_only = dataclasses.replace(
        without(bundle, "encoder", "generator", "click_model"),
        index=CooccurrenceIndex(tmp_path, spec),
    )
    ranking = msgspec.structs.replace(CONFIG.ranking, max_log_candidates=2)
    pipeline = make(log_only, runtime, msgspec.structs.replace(CONFIG, ranking=ranking))
    answer = await ask(pipeline, "red", scenario="completion")
    assert texts(answer) == ["red shoe", "red hat", "red shoe box", "red shoe rack"]
