"""The plain stack says what the engine says, over the same contract."""

import asyncio
import gzip
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from benchmarks.plain.check import agreement
from benchmarks.plain.models import Setting
from benchmarks.plain.questions import questions_of
from benchmarks.plain.recommender import Recommender
from benchmarks.plain.server import Batcher, Batching
from benchmarks.served import mismatch, served_plainly
from engine.answering.answer import Answer, Question
from export.bundle import export_bundle
from export.checkpoint import Run
from export.sample import write_sample_run
from queryrec.v1 import query_recommender_service_pb2 as pb
from tests.blocking import blocking_stub

HELDOUT = Path(__file__).parents[2] / "examples/data/heldout.txt.gz"
FP32 = Setting("fp32", 1)


@pytest.fixture(scope="module", params=["slots", "beam"])
def run(request, tmp_path_factory) -> Path:
    """A run directory with random weights, and its bundle in float32."""
    directory = tmp_path_factory.mktemp("plain") / "run"
    write_sample_run(directory)
    (directory / "generator/metrics.json").write_text(json.dumps({"mode": request.param}))
    export_bundle(
        directory, directory / "bundle", mode=request.param, precision="fp32", num_parity_requests=3
    )
    return directory


@pytest.fixture(scope="module")
def recommender(run) -> Recommender:
    return Recommender(Run(run), FP32)


@pytest.fixture(scope="module")
def questions(run, recommender):
    """Held-out queries, and some that the log knows."""
    with gzip.open(HELDOUT, "rt", encoding="utf-8") as stream:
        heldout = random.Random(0).sample(stream.read().splitlines(), 18)
    return questions_of([*heldout, *Run(run).queries[::150]], recommender.scenarios)


def test_in_float32_it_writes_and_shows_what_the_engine_does(run, recommender, questions):
    found = agreement(recommender, run / "bundle", questions)
    assert found.num_texts > 150
    assert found.equal_texts > 0.99
    assert found.num_suggestions > 60
    assert found.equal_suggestions > 0.99


def test_an_answer_does_not_depend_on_its_neighbours(recommender, questions):
    together = recommender.answers(questions[:9])
    for question, answer in zip(questions[:9], together, strict=True):
        (alone,) = recommender.answers([question])
        assert [s.text for s in alone.suggestions] == [s.text for s in answer.suggestions]
        assert [s.click_probability for s in alone.suggestions] == pytest.approx(
            [s.click_probability for s in answer.suggestions], abs=1e-4
        )
        assert alone.auxiliary_text == answer.auxiliary_text


def test_a_run_without_a_part_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("click_model", "bundle"))
    with pytest.raises(ValueError, match="has no click_model"):
        Recommender(Run(tmp_path / "run"), FP32)


def test_a_bundle_of_another_run_is_told(run, other_bundle):
    assert mismatch(run, run / "bundle") == ""
    assert "was not made from" in mismatch(run, other_bundle)


class Counting(Recommender):
    """Answers with the queries, loads no models, and keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        self.batches.append([q.query for q in questions])
        return [Answer(suggestions=(), auxiliary_text=q.query, omissions=()) for q in questions]


async def test_requests_of_ten_milliseconds_are_one_batch_and_a_full_batch_leaves_at_once(
    questions,
):
    counting = Counting()
    batcher = Batcher(counting, Batching(wait_s=1.0, max_size=3))
    running = asyncio.create_task(batcher.run())
    asked = [asyncio.create_task(batcher.answer(q)) for q in questions[:5]]
    await asyncio.sleep(0)
    asked[4].cancel()  # its caller leaves before its batch does
    answers = await asyncio.gather(*asked[:4])
    running.cancel()
    wanted = [q.query for q in questions]
    assert [a.auxiliary_text for a in answers] == wanted[:4]
    assert counting.batches == [wanted[:3], wanted[3:4]]


def test_it_serves_the_contract(run):
    tuned = (run, "--precision=fp32", "--threads=1")
    with served_plainly(*tuned) as server, grpc.insecure_channel(server.target) as channel:
        stub = blocking_stub(channel)
        request = pb.RecommendRequest(scenario="suggestion", query="Wireless  Earbuds")
        response = stub.Recommend(request, timeout=30)
        assert len(response.suggestions) == 6
        assert [s.position for s in response.suggestions] == [1, 2, 3, 4, 5, 6]
        assert all(0 <= s.click_probability <= 1 and s.sources for s in response.suggestions)
        request = pb.RecommendRequest(scenario="suggestion", query="")
        with pytest.raises(grpc.RpcError) as raised:
            stub.Recommend(request, timeout=30)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
