"""Swaps and splits of releases, with real bundles: who answers, what is refused, what is freed."""

import asyncio
import gc
import logging
import random
import shutil
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from engine.answering.answer import Answer, Question
from engine.answering.pipeline import Pipeline
from engine.config import Config, ModelsConfig
from engine.execution.runtime import Runtime
from engine.formats.manifest import read_manifest
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Left, Omission, Probe, Stage, Why
from engine.serving.loading import load_pipeline
from engine.serving.places import Places
from engine.serving.releases import Release, Releases

CLOCK = MonotonicClock()
CONFIG = Config(models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2))


@pytest.fixture
def runtime():  # of its own: sessions are counted
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    yield runtime
    runtime.close()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
async def releases(runtime, lines, clock) -> AsyncIterator[Releases]:
    async def load(
        side: str, directory: Path, phrases: Sequence[str], others: Sequence[Pipeline]
    ) -> Pipeline:
        return await load_pipeline(
            directory, runtime, CONFIG, CLOCK, phrases=phrases, others=others
        )

    releases = Releases(
        load, clock=clock, canary_share=0.25, report=lines.append, randomness=random.Random(7)
    )
    yield releases
    await releases.close()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector does not look at a release: what is freed is freed without it."""
    gc.disable()
    yield
    gc.enable()


def bundle_id(directory: Path) -> str:
    return read_manifest(directory).bundle_id


def served(releases: Releases) -> str:
    assert releases.main is not None
    return releases.main.manifest.bundle_id


async def ask(pipeline: Pipeline) -> int:
    return len((await answered(pipeline)).suggestions)


async def answered(pipeline: Pipeline) -> Answer:
    question = Question(
        scenario=pipeline.bundle.scenarios["suggestion"],
        query="never searched before",
        num_suggestions=6,
        deadline=Deadline.after(30.0, CLOCK),
    )
    return await pipeline.recommend(question, Probe(CLOCK))


async def test_the_old_release_ends_with_its_last_request_and_is_freed(
    releases, runtime, tiny_bundle, other_bundle, no_collector
):
    await releases.load(Places(tiny_bundle))
    old = releases.main
    freed = asyncio.Event()
    _watched = weakref.ref(old.pipeline.bundle.generator, lambda _: freed.set())
    pipeline, bundle = old.pipeline, old.pipeline.bundle
    parts = (pipeline, pipeline.worker, bundle.index, bundle.vocabulary, bundle.statistics)
    rest = [weakref.ref(part) for part in parts]
    del pipeline, bundle, parts
    with old.answering() as pipeline:
        assert await releases.refresh(Places(other_bundle), is_asked=True)
        assert served(releases) == bundle_id(other_bundle)
        assert runtime.num_sessions == 6
        assert await ask(pipeline)  # what it began with, it ends with
        assert not freed.is_set()
    del old, pipeline
    async with asyncio.timeout(20):
        await freed.wait()
    assert [reference() for reference in rest] == [None] * 5
    assert runtime.num_sessions == 3
    assert releases.num_swaps == 1
    assert await ask(releases.main.pipeline)


async def test_another_index_takes_over_without_loading_a_model(
    releases, runtime, tiny_bundle, changed_bundle
):
    await releases.load(Places(tiny_bundle))
    generator = releases.main.pipeline.bundle.generator
    vocabulary = weakref.ref(releases.main.pipeline.bundle.vocabulary)
    newer = changed_bundle(tiny_bundle, "newer")
    await ask(releases.main.pipeline)
    with releases.main.answering():
        assert await releases.refresh(Places(newer), is_asked=True)
        assert runtime.num_sessions == 3
    pipeline = releases.main.pipeline
    assert served(releases) == bundle_id(newer) != bundle_id(tiny_bundle)
    assert pipeline.bundle.generator is not generator
    assert pipeline.bundle.vocabulary is vocabulary()  # and what it remembers
    for work in {rung.work for rungs in pipeline.bundle.rungs.values() for rung in rungs}:
        assert pipeline.worker.models.costs.predict_s(work, 1) > 0  # known without a run of it
    answer = await answered(pipeline)
    assert answer.suggestions
    assert Omission(Stage.GENERATE, Left.SKIPPED, Why.CACHED) in answer.omissions


async def test_a_corrupt_release_is_refused_and_complained_of_once(
    releases, runtime, tiny_bundle, other_bundle, changed_bundle, caplog
):
    await releases.load(Places(tiny_bundle))
    corrupt = changed_bundle(other_bundle, "corrupt")
    content = bytearray((corrupt / "generator.onnx").read_bytes())
    content[-1] ^= 1
    (corrupt / "generator.onnx").write_bytes(content)
    for _ in range(3):
        assert not await releases.refresh(Places(corrupt), is_asked=False)
    assert served(releases) == bundle_id(tiny_bundle)
    assert releases.num_refusals == 1
    [record] = caplog.records
    assert "generator.onnx: content differs from its sha256" in record.getMessage()
    assert not await releases.refresh(Places(corrupt), is_asked=True)
    assert len(caplog.records) == 2  # whoever asks is told again
    assert releases.num_refusals == 1
    assert runtime.num_sessions == 3
    assert await ask(releases.main.pipeline)


async def test_a_release_that_was_refused_is_taken_once_it_is_whole(
    releases, tiny_bundle, other_bundle, tmp_path
):
    await releases.load(Places(tiny_bundle))
    place = Places(tmp_path / "copied")
    assert not await releases.refresh(place, is_asked=False)  # nothing there yet
    shutil.copytree(other_bundle, place.bundle)
    assert await releases.refresh(place, is_asked=False)
    assert served(releases) == bundle_id(other_bundle)


async def test_a_release_that_was_refused_is_tried_again_unasked_ever_more_seldom(
    releases, clock, tiny_bundle, other_bundle, changed_bundle, caplog
):
    await releases.load(Places(tiny_bundle))
    place = Places(changed_bundle(other_bundle, "copied"))
    generator = place.bundle / "generator.onnx"
    whole = generator.read_bytes()
    generator.write_bytes(whole[:-1])  # all of it will have come when it is looked at again
    assert not await releases.refresh(place, is_asked=False)
    generator.write_bytes(whole)
    clock.advance(59)
    assert not await releases.refresh(place, is_asked=False)
    generator.write_bytes(whole[:-1])
    clock.advance(1)
    assert not await releases.refresh(place, is_asked=False)
    generator.write_bytes(whole)
    clock.advance(119)
    assert not await releases.refresh(place, is_asked=False)
    clock.advance(1)
    assert await releases.refresh(place, is_asked=False)
    assert served(releases) == bundle_id(place.bundle)
    assert len(caplog.records) == releases.num_refusals == 1


async def test_a_release_without_a_scenario_in_use_is_refused(
    releases, tiny_bundle, changed_bundle, caplog
):
    await releases.load(Places(tiny_bundle))
    scenarios = [s for s in read_manifest(tiny_bundle).scenarios if s.name != "completion"]
    fewer = changed_bundle(tiny_bundle, "fewer", scenarios=scenarios)
    assert not await releases.refresh(Places(fewer), is_asked=False)
    assert served(releases) == bundle_id(tiny_bundle)
    assert "lacks completion, which callers are using" in caplog.text


async def test_nothing_new_is_told_to_whoever_asks_and_to_nobody_else(
    releases, tiny_bundle, lines, caplog
):
    caplog.set_level(logging.INFO)
    await releases.load(Places(tiny_bundle))
    assert await releases.refresh(Places(tiny_bundle), is_asked=False)
    assert lines == []
    assert await releases.refresh(Places(tiny_bundle), is_asked=True)
    assert lines == [f"bundle {bundle_id(tiny_bundle)} is served already"]
    assert releases.num_swaps == 0


async def test_a_session_stays_on_its_side_and_about_its_share_goes_to_the_canary(
    releases, tiny_bundle, other_bundle
):
    await releases.load(Places(tiny_bundle, other_bundle))

    def is_canary(release: Release) -> bool:
        return release.manifest.bundle_id == bundle_id(other_bundle)

    ids = [f"session {i}" for i in range(2000)]
    sides = [is_canary(releases.pick(i, "suggestion")) for i in ids]
    assert sides == [is_canary(releases.pick(i, "completion")) for i in ids]
    assert 430 < sum(sides) < 570  # 500 is expected; 3.6 standard deviations
    without = [is_canary(releases.pick("", "suggestion")) for _ in range(2000)]
    assert 430 < sum(without) < 570


async def test_a_scenario_that_the_canary_lacks_is_answered_by_the_main_release(
    releases, runtime, tiny_bundle, changed_bundle
):
    scenarios = [s for s in read_manifest(tiny_bundle).scenarios if s.name != "completion"]
    fewer = changed_bundle(tiny_bundle, "fewer", scenarios=scenarios)
    await releases.load(Places(tiny_bundle, fewer))
    assert runtime.num_sessions == 3  # the same models
    ids = [f"session {i}" for i in range(100)]
    assert {releases.pick(i, "completion") for i in ids} == {releases.main}
    assert len({releases.pick(i, "suggestion") for i in ids}) == 2


async def test_a_canary_is_swapped_alone(releases, tiny_bundle, other_bundle, changed_bundle):
    await releases.load(Places(tiny_bundle, other_bundle))
    newer = changed_bundle(tiny_bundle, "newer")
    main = releases.main
    assert await releases.refresh(Places(tiny_bundle, newer), is_asked=True)
    assert releases.main is main
    ids = {releases.pick(f"s{i}", "suggestion").manifest.bundle_id for i in range(100)}
    assert ids == {bundle_id(tiny_bundle), bundle_id(newer)}
