"""The engine on a real tritonserver: the same answers, and what happens when the server fails."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine.answering.answer import Answer, Question
from engine.answering.pipeline import Pipeline
from engine.config import Config, ModelsConfig, TritonConfig
from engine.execution.runtime import Runtime
from engine.execution.wire import model_name
from engine.formats.manifest import read_manifest
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Left, Omission, Probe, Stage, Why
from engine.serving.loading import load_pipeline
from tests.triton.conftest import TritonServer

pytestmark = pytest.mark.triton

CLOCK = MonotonicClock()
LOCAL = Config(models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2))
AMPLE_S = 30.0
PREFIXES = ("w", "gaming m", "q", "wireless mouse", "50%")


@pytest.fixture(scope="module")
def runtime():
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    yield runtime
    runtime.close()


def remote(url: str, concurrency: int = 4) -> Config:
    # Nothing is remembered, so that every answer comes from the server.
    cache = msgspec.structs.replace(LOCAL.cache, max_bytes=0)
    return msgspec.structs.replace(
        LOCAL, cache=cache, triton=TritonConfig(url=url, concurrency=concurrency)
    )


@asynccontextmanager
async def loaded(directory: Path, runtime: Runtime, config: Config) -> AsyncIterator[Pipeline]:
    pipeline = await load_pipeline(directory, runtime, config, CLOCK)
    try:
        yield pipeline
    finally:
        await pipeline.worker.close()


async def ask(
    pipeline: Pipeline, query: str, *, scenario: str = "suggestion", budget_s: float = AMPLE_S
) -> Answer:
    question = Question(
        scenario=pipeline.bundle.scenarios[scenario],
        query=query,
        deadline=Deadline.after(budget_s, CLOCK),
        num_suggestions=6,
    )
    return await pipeline.recommend(question, Probe(CLOCK))


def skipped(answer: Answer) -> dict[Stage, Why]:
    return {o.stage: o.reason for o in answer.omissions if o.kind is Left.SKIPPED}


async def test_answers_are_those_of_models_in_this_process(triton, bundle_directory, runtime):
    no_cache = msgspec.structs.replace(LOCAL, cache=remote("").cache)
    async with (
        loaded(bundle_directory, runtime, no_cache) as here,
        loaded(bundle_directory, runtime, remote(triton.url)) as there,
    ):
        assert there.bundle.generator is None
        index = here.bundle.index
        assert index is not None
        for scenario in here.bundle.scenarios:
            known = [index.text(int(i)) for i in index.popular(4)]
            for query in (*known, "never searched before", *PREFIXES):
                expected = await ask(here, query, scenario=scenario)
                got = await ask(there, query, scenario=scenario)
                assert got.omissions == expected.omissions == ()
                assert got.auxiliary_text == expected.auxiliary_text
                assert [s.text for s in got.suggestions] == [s.text for s in expected.suggestions]
                assert [s.click_probability for s in got.suggestions] == pytest.approx(
                    [s.click_probability for s in expected.suggestions], abs=1e-4
                )


async def test_answers_do_not_depend_on_who_asks_at_the_same_time(
    triton, bundle_directory, runtime
):
    async with loaded(bundle_directory, runtime, remote(triton.url)) as pipeline:
        queries = [f"odd thing {i}" * (1 + i % 3) for i in range(24)]
        alone = [await ask(pipeline, q) for q in queries]
        together = await asyncio.gather(*(ask(pipeline, q) for q in queries))
    assert [[s.text for s in a.suggestions] for a in together] == [
        [s.text for s in a.suggestions] for a in alone
    ]


async def test_without_a_server_loading_fails_and_names_the_address(bundle_directory, runtime):
    with pytest.raises(ValueError, match=r'triton.url is "127.0.0.1:1", but no Triton server'):
        await load_pipeline(bundle_directory, runtime, remote("127.0.0.1:1"), CLOCK)


async def test_a_server_of_another_bundle_is_refused_and_the_way_out_named(
    triton, tiny_bundle, runtime
):
    with pytest.raises(ValueError, match="does not serve encoder_") as failure:
        await load_pipeline(tiny_bundle, runtime, remote(triton.url), CLOCK)
    told = str(failure.value)
    assert f"queryrec-export triton --bundle {tiny_bundle}" in told
    assert "it serves click_model_" in told


async def test_one_server_serves_two_bundles(
    start_triton, repository, bundle_directory, tiny_bundle, runtime, tmp_path
):
    from export.triton import write_repository

    write_repository(tiny_bundle, tmp_path / "other", backend="python")
    server = start_triton(repository, tmp_path / "other")
    try:
        for directory in (bundle_directory, tiny_bundle):  # fp32, int8
            async with (
                loaded(directory, runtime, LOCAL) as here,
                loaded(directory, runtime, remote(server.url)) as there,
            ):
                for scenario in here.bundle.scenarios:
                    got = await ask(there, "never searched before", scenario=scenario)
                    assert got.suggestions
                    assert got == await ask(here, "never searched before", scenario=scenario)
    finally:
        server.kill()


async def test_an_index_only_release_runs_its_models_before_it_answers(
    start_triton, repository, bundle_directory, runtime, tmp_path
):
    from export.packing import sealed
    from export.triton import write_repository

    newer = shutil.copytree(bundle_directory, tmp_path / "newer")
    (newer / "manifest.json").unlink()
    old = read_manifest(bundle_directory)
    assert old.index is not None
    index = msgspec.structs.replace(old.index, ef_search=old.index.ef_search + 1)
    manifest = sealed(newer, msgspec.structs.replace(old, index=index))
    assert manifest.has_models_of(old)
    write_repository(newer, tmp_path / "repository", backend="python")
    server = start_triton(repository, tmp_path / "repository")
    config = remote(server.url)
    try:
        async with loaded(bundle_directory, runtime, config) as before:
            pipeline = await load_pipeline(newer, runtime, config, CLOCK, others=[before])
            await pipeline.worker.close()
        for role in ("encoder", "generator", "click_model"):
            num_runs, _ = server.executions(model_name(role, manifest))
            assert num_runs > 0
    finally:
        server.kill()


async def test_the_same_release_again_runs_nothing_but_look_ups(
    own_triton, bundle_directory, runtime
):
    manifest, config = read_manifest(bundle_directory), remote(own_triton.url)
    names = [model_name(role, manifest) for role in ("generator", "click_model")]
    async with loaded(bundle_directory, runtime, config) as before:
        expected = [own_triton.executions(name) for name in names]
        pipeline = await load_pipeline(
            bundle_directory, runtime, config, CLOCK, phrases=["mouse"], others=[before]
        )
        await pipeline.worker.close()
        assert [own_triton.executions(name) for name in names] == expected


async def test_a_server_that_is_too_slow_to_warm_up_is_named(
    triton, bundle_directory, runtime, monkeypatch
):
    monkeypatch.setattr("engine.execution.triton._CALL_TIMEOUT_S", 1e-6)  # over already
    with pytest.raises(ValueError, match=rf"warming up: .* {triton.url}: no answer within 1e-06 s"):
        await load_pipeline(bundle_directory, runtime, remote(triton.url), CLOCK)


async def test_a_model_of_another_signature_is_refused(
    start_triton, repository, bundle_directory, runtime, tmp_path
):
    changed = shutil.copytree(repository, tmp_path / "changed")
    name = model_name("encoder", read_manifest(bundle_directory))
    config = changed / name / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: 32", "dims: 31"))
    server = start_triton(changed)
    try:
        with pytest.raises(ValueError, match=f"{name} at .*31.*but must be .*32"):
            await load_pipeline(bundle_directory, runtime, remote(server.url), CLOCK)
    finally:
        server.kill()


async def test_a_server_that_stands_still_costs_the_models_but_not_the_deadline(
    own_triton, bundle_directory, runtime
):
    async with loaded(bundle_directory, runtime, remote(own_triton.url)) as pipeline:
        own_triton.signal(signal.SIGSTOP)
        answer = await asyncio.wait_for(ask(pipeline, "wireless mouse", budget_s=0.5), 20)
        assert answer.suggestions
        assert skipped(answer)[Stage.GENERATE] in (Why.BUDGET, Why.OVERLOAD)
        own_triton.signal(signal.SIGCONT)
        assert await full_answer(pipeline)


async def full_answer(pipeline: Pipeline) -> Answer:
    """Asks until nothing is left out; the test's own timeout ends it otherwise."""
    while True:
        answer = await ask(pipeline, "wireless mouse", budget_s=5)
        if not answer.omissions:
            return answer
        await asyncio.sleep(0.05)


async def test_a_server_that_dies_while_it_is_asked_costs_the_models_until_it_is_back(
    own_triton, bundle_directory, runtime, caplog
):
    async with loaded(bundle_directory, runtime, remote(own_triton.url)) as pipeline:
        expected = await ask(pipeline, "wireless mouse")
        own_triton.signal(signal.SIGSTOP)  # so that the question is surely under way
        asked = asyncio.ensure_future(ask(pipeline, "wireless mouse"))
        await asyncio.sleep(0.2)
        own_triton.kill()
        answer = await asyncio.wait_for(asked, 20)
        assert answer.suggestions
        everything = {Stage.ENCODE, Stage.GENERATE, Stage.SCORE}
        assert skipped(answer) == dict.fromkeys(everything, Why.FAILURE)
        for _ in range(3):  # while it is away
            again = await asyncio.wait_for(ask(pipeline, "wireless mouse"), 20)
            assert again.suggestions
            assert skipped(again)[Stage.GENERATE] is Why.FAILURE
        await asyncio.to_thread(own_triton.start)
        assert (await full_answer(pipeline)).suggestions == expected.suggestions
    told = [r.getMessage() for r in caplog.records if "triton at" in r.getMessage()]
    assert len(told) == 2  # once when it went, once when it came back
    assert not any("mouse" in line for line in told)


async def test_a_question_that_is_withdrawn_leaves_nothing_under_way(
    own_triton, bundle_directory, runtime
):
    async with loaded(bundle_directory, runtime, remote(own_triton.url)) as pipeline:
        own_triton.signal(signal.SIGSTOP)
        asked = [asyncio.ensure_future(ask(pipeline, f"odd thing {i}")) for i in range(6)]
        await asyncio.sleep(0.2)
        worker = pipeline.worker
        assert worker.wait_s() > 0
        for task in asked:
            task.cancel()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(o, asyncio.CancelledError) for o in outcomes)
        while worker.num_beside or any(worker.waiting()):  # noqa: ASYNC110 - calls end by themselves
            await asyncio.sleep(0.01)
        own_triton.signal(signal.SIGCONT)
        assert await full_answer(pipeline)


async def test_omissions_name_what_failed_and_nothing_else(own_triton, bundle_directory, runtime):
    async with loaded(bundle_directory, runtime, remote(own_triton.url)) as pipeline:
        own_triton.kill()
        answer = await ask(pipeline, "never searched before")
        assert set(answer.omissions) == {
            Omission(stage, Left.SKIPPED, Why.FAILURE)
            for stage in (Stage.ENCODE, Stage.GENERATE, Stage.SCORE)
        }
        assert len(answer.suggestions) == 6


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_rows_beyond_the_concurrency_wait_here(
    triton, bundle_directory, runtime, concurrency: int
):
    async with loaded(bundle_directory, runtime, remote(triton.url, concurrency)) as pipeline:
        answers = await asyncio.gather(*(ask(pipeline, f"odd thing {i}") for i in range(8)))
    assert all(a.omissions == () for a in answers)


@pytest.mark.usefixtures("start_triton")  # skips where there is no tritonserver
def test_a_gpu_that_is_not_there_is_no_silent_fallback(bundle_directory, tmp_path):
    from export.triton import write_repository

    write_repository(bundle_directory, tmp_path / "gpu", backend="python")
    for config in (tmp_path / "gpu").glob("*/config.pbtxt"):  # Triton's part is left as it is
        config.write_text(config.read_text().replace('string_value: "cpu"', 'string_value: "cuda"'))
    server = TritonServer(tmp_path, tmp_path / "gpu")
    with pytest.raises(pytest.fail.Exception, match="failed to load all models"):
        server.start()
    assert "CUDAExecutionProvider could not start" in server.log()
