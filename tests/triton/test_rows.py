"""Rows on a real tritonserver: what models give there, and how rows get along with one another."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

from engine.execution.bundle import Bundle, load_bundle
from engine.execution.models import GenerateRow, ScoreRow
from engine.execution.runtime import Runtime
from engine.execution.triton import TritonModels, connect
from engine.execution.wire import Arrays, click_model_row, encoder_row, generator_row, model_name
from engine.formats.features import FEATURE_NAMES
from engine.formats.vocabulary import FIRST_TEXT_ID
from engine.scheduling.batcher import TooLate
from engine.scheduling.deadline import MonotonicClock
from engine.scheduling.planner import SCORED_SIZES

pytestmark = pytest.mark.triton

CLOCK = MonotonicClock()
NUM_ROWS = 500
NUM_TRIES = 5  # of what takes its time to reach Triton, and on a busy machine too much of it
TYPES = {"int64": "INT64", "float32": "FP32"}


@pytest.fixture(scope="module")
def bundle(bundle_directory: Path):
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    yield load_bundle(bundle_directory, runtime)
    runtime.close()


@pytest.fixture
async def models(triton, bundle_directory: Path, bundle: Bundle) -> AsyncIterator[TritonModels]:
    models = await connect(triton.url, bundle_directory, bundle.manifest, CLOCK)
    yield models
    await models.close()


@pytest.fixture
async def client(triton) -> AsyncIterator[aio.InferenceServerClient]:
    client = aio.InferenceServerClient(triton.url)
    yield client
    await client.close()


class Draw:
    """Random rows of a bundle."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        self._rng, self._bundle = random.Random(seed), bundle

    def ids(self, longest: int) -> list[int]:
        num, last = self._rng.randint(1, longest), self._bundle.vocabulary.size - 1
        return [self._rng.randint(FIRST_TEXT_ID, last) for _ in range(num)]

    def prompt(self) -> GenerateRow:
        rungs = [r for rungs in self._bundle.rungs.values() for r in rungs]
        first = self._rng.randint(FIRST_TEXT_ID, 400)
        return GenerateRow(
            self.ids(64), (first, first + self._rng.randint(1, 100)), self._rng.choice(rungs)
        )

    def candidates(self) -> ScoreRow:
        texts = [self.ids(20) for _ in range(self._rng.randint(1, 32))]
        features = [[self._rng.random() for _ in FEATURE_NAMES] for _ in texts]
        return ScoreRow(self.ids(64), texts, np.array(features, np.float32))


async def at_most(limit: int, calls: list) -> list:
    """Returns the calls' results, `limit` of them under way at the same time."""
    gate = asyncio.Semaphore(limit)

    async def one(call):
        async with gate:
            return await call

    return await asyncio.gather(*map(one, calls))


async def test_prompts_of_all_scenarios_give_what_they_give_here(bundle, models):
    draw, far_s = Draw(bundle, 1), CLOCK.now_s() + 60
    rows = [draw.prompt() for _ in range(NUM_ROWS)]
    got = await at_most(16, [models.generate(r, far_s) for r in rows])
    for found, row in zip(got, rows, strict=True):
        (expected,) = bundle.generator.run([row])
        assert found[:2] == expected[:2]
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


async def test_candidates_give_what_they_give_here(bundle, models):
    draw, far_s = Draw(bundle, 2), CLOCK.now_s() + 60
    rows = [draw.candidates() for _ in range(NUM_ROWS)]
    sizes = [min(s for s in SCORED_SIZES if s >= len(r.candidate_ids)) for r in rows]
    got = await at_most(16, [models.score(r, s, far_s) for r, s in zip(rows, sizes, strict=True)])
    for logits, row, size in zip(got, rows, sizes, strict=True):
        assert logits == pytest.approx(bundle.click_model.run([row], size)[0], abs=1e-4)


async def test_texts_give_what_they_give_here(bundle, models):
    draw, far_s = Draw(bundle, 3), CLOCK.now_s() + 60
    texts = [[], *(draw.ids(80) for _ in range(NUM_ROWS))]
    got = await at_most(16, [models.encode(t, far_s) for t in texts])
    for embedding, text in zip(got, texts, strict=True):
        assert embedding == pytest.approx(bundle.encoder.run([text])[0], abs=1e-5)


async def test_prompts_that_wait_share_a_run_whatever_their_lengths_and_slots(
    bundle, models, triton
):
    draw, far_s = Draw(bundle, 7), CLOCK.now_s() + 60
    rows = [draw.prompt() for _ in range(9)]
    assert len({(len(r.prompt_ids), len(r.rung.slots)) for r in rows}) > 4
    name = model_name("generator", bundle.manifest)
    num_runs = []
    while len(num_runs) < NUM_TRIES and not (num_runs and num_runs[-1] <= 4):
        runs_before, rows_before = triton.executions(name)
        triton.signal(signal.SIGSTOP, models_only=True)
        try:
            first = asyncio.ensure_future(models.generate(rows[0], far_s))
            await asyncio.sleep(0.1)
            others = [asyncio.ensure_future(models.generate(r, far_s)) for r in rows[1:]]
            await asyncio.sleep(0.2)
        finally:
            triton.signal(signal.SIGCONT, models_only=True)
        assert await asyncio.gather(first, *others) == [bundle.generator.run([r])[0] for r in rows]
        runs, count = triton.executions(name)
        assert count - rows_before == 9
        num_runs.append(runs - runs_before)
    assert 2 <= num_runs[-1] <= 4, num_runs


def tensors(row: Arrays) -> list[aio.InferInput]:
    return [
        aio.InferInput(n, a.shape, TYPES[a.dtype.name]).set_data_from_numpy(a)
        for n, a in row.items()
    ]


def ids(*values: int) -> np.ndarray:
    return np.array([values], np.int64)


NO_IDS = np.zeros((1, 0), np.int64)
BAD_PROMPTS = {
    "an id too large": ({"input_ids": ids(130, 99_999)}, "input_ids: needs ids"),
    "a negative id": ({"input_ids": ids(-1)}, "input_ids: needs ids"),
    "too many ids": ({"input_ids": np.full((1, 65), 140)}, "must be 1 to 64"),
    "no ids": ({"input_ids": NO_IDS}, "must be 1 to 64"),
    "a slot too large": ({"slots": ids(4, 9_999)}, "slots: needs ids"),
    "a limit too few": ({"max_new_tokens": ids(4)}, "max_new_tokens: has 1 rows, slots 2"),
    "two rows": (
        {"input_ids": np.full((2, 3), 140), "slots": np.full((2, 2), 4)}
        | {"max_new_tokens": np.full((2, 2), 4), "first_token_range": np.full((2, 2), 200)},
        "a request is one row",
    ),
}


@pytest.mark.parametrize("bad", BAD_PROMPTS)
async def test_a_bad_prompt_is_told_so_and_its_neighbours_are_answered(
    bundle, models, client, triton, bad
):
    changed, message = BAD_PROMPTS[bad]
    draw, far_s = Draw(bundle, 4), CLOCK.now_s() + 60
    good = [draw.prompt() for _ in range(4)]
    row = {**generator_row(good[0]._replace(rung=bundle.rungs["suggestion"][0])), **changed}
    if "slots" in changed or "max_new_tokens" in changed:
        row = {"slots": ids(4, 5), "max_new_tokens": ids(4, 4), **changed} | {
            n: a for n, a in row.items() if n not in ("slots", "max_new_tokens")
        }
    name = model_name("generator", bundle.manifest)
    triton.signal(signal.SIGSTOP, models_only=True)  # until all wait, so that they share a batch
    try:
        first = asyncio.ensure_future(models.generate(good[0], far_s))
        await asyncio.sleep(0.05)
        refused = asyncio.ensure_future(client.infer(name, tensors(row)))
        others = [asyncio.ensure_future(models.generate(r, far_s)) for r in good]
        await asyncio.sleep(0.2)
    finally:
        triton.signal(signal.SIGCONT, models_only=True)
    with pytest.raises(InferenceServerException, match=message):
        await refused
    expected = [bundle.generator.run([r])[0] for r in good]
    assert await asyncio.gather(first, *others) == [expected[0], *expected]


@pytest.mark.parametrize("limit", [0, -7, 1 << 40])
async def test_limits_are_clamped(bundle, client, limit):
    prompt = Draw(bundle, 5).prompt()
    row = {
        **generator_row(prompt),
        "slots": ids(4, 5),
        "max_new_tokens": ids(limit, limit),
    }
    result = await client.infer(model_name("generator", bundle.manifest), tensors(row))
    longest = 1 if limit < 1 else bundle.manifest.generator.max_new_tokens
    assert 1 <= result.as_numpy("sequences").shape[2] <= longest


async def test_candidate_lengths_that_lie_are_told_so(bundle, client):
    row = click_model_row(Draw(bundle, 6).candidates(), 32, 16)
    row["candidate_lengths"] = row["candidate_lengths"] % 16 + 1
    with pytest.raises(InferenceServerException, match="candidate_lengths add to"):
        await client.infer(model_name("click_model", bundle.manifest), tensors(row))


async def test_rows_cancelled_while_they_wait_do_not_run(
    bundle, bundle_directory, repository, start_triton
):
    server = start_triton(repository, is_verbose=True)  # its statistics count them as run
    models = await connect(server.url, bundle_directory, bundle.manifest, CLOCK)
    try:
        told = "6 of 8 rows were cancelled"
        for _ in range(NUM_TRIES):
            far_s = CLOCK.now_s() + 60
            # Not for long: Triton would give them up.
            server.signal(signal.SIGSTOP, models_only=True)
            first = asyncio.ensure_future(models.encode([150], far_s))
            await asyncio.sleep(0.2)
            waiting = [asyncio.ensure_future(models.encode([151 + i], far_s)) for i in range(8)]
            await asyncio.sleep(0.2)
            for task in waiting[:6]:
                task.cancel()
            await asyncio.sleep(0.2)
            server.signal(signal.SIGCONT, models_only=True)
            assert len(await asyncio.gather(first, *waiting[6:])) == 3
            until_s = CLOCK.now_s() + 5
            while told not in server.log() and CLOCK.now_s() < until_s:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            if told in server.log():
                break
        assert told in server.log()
    finally:
        await models.close()
        server.kill()


async def test_a_row_whose_time_has_passed_is_not_sent(bundle, models, triton):
    name = model_name("encoder", bundle.manifest)
    before = triton.executions(name)
    with pytest.raises(TooLate):
        await models.encode([150], CLOCK.now_s())
    assert triton.executions(name) == before


async def test_a_row_that_takes_too_long_is_given_up(models, triton):
    triton.signal(signal.SIGSTOP, models_only=True)
    try:
        with pytest.raises(TooLate):
            await models.encode([150], CLOCK.now_s() + 0.2)
    finally:
        triton.signal(signal.SIGCONT, models_only=True)


async def test_the_server_reads_texts_as_this_process_does_when_they_are_empty(models, bundle):
    row = encoder_row([], 64)
    assert row["input_ids"].tolist() == [[0]]
    embedding = await models.encode([], CLOCK.now_s() + 60)
    assert embedding == pytest.approx(bundle.encoder.run([[]])[0], abs=1e-5)
