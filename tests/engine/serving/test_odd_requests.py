"""Requests that are legal but odd: they cost little and get an answer that says what it is."""

import asyncio
import dataclasses
import json
import shutil
import time

import msgspec
import pytest

from engine.answering.answer import Answer, Question
from engine.answering.pipeline import Pipeline
from engine.config import Config
from engine.errors import InvalidRequest
from engine.execution.bundle import Bundle, load_bundle
from engine.execution.retrieval import Retrieval
from engine.feedback.attribution import AttributionToken, KeyRing
from engine.formats.manifest import BundleError
from engine.formats.prompt import SideInformation as Item
from engine.formats.text import MAX_QUERY_BYTES, normalise
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Left, Omission, Probe, Stage, Why
from engine.serving import translation
from engine.serving.translation import question_of, response_of
from queryrec.v1.query_recommender_service_pb2 import RecommendRequest
from queryrec.v1.side_information_pb2 import SideInformation

CLOCK = MonotonicClock()
CONFIG = Config()
GROWING = "\ufdfa"  # 3 bytes; 18 characters of 33 bytes after normalisation


def translated(bundle: Bundle, **fields) -> Question:
    return question_of(
        RecommendRequest(scenario="suggestion", **{"query": "wireless mouse", **fields}),
        bundle.scenarios,
        time_left_s=1.0,
        default_budget_s=1.0,
        clock=CLOCK,
    )


async def ask(pipeline: Pipeline, query: str, *, scenario: str = "suggestion") -> Answer:
    question = Question(
        scenario=pipeline.bundle.scenarios[scenario],
        query=query,
        num_suggestions=6,
        deadline=Deadline.after(30.0, CLOCK),
    )
    return await pipeline.recommend(question, Probe(CLOCK))


@pytest.mark.parametrize("num_bytes", [250, 252, 254])
def test_suffix_completions_are_never_longer_than_a_query_may_be(bundle, num_bytes):
    assert bundle.index is not None
    retrieval = Retrieval(bundle.index, max_candidates=24, max_cooccurring=5, num_nearest=8)
    prefix = "x" * (num_bytes - len(" wi")) + " wi"
    texts = retrieval.completions(prefix, ()).texts
    assert all(len(t.encode()) <= MAX_QUERY_BYTES for t in texts)


def test_suffix_completions_that_just_fit_are_kept(bundle):
    assert bundle.index is not None
    retrieval = Retrieval(bundle.index, max_candidates=24, max_cooccurring=5, num_nearest=8)
    known = retrieval.completions("wireless m", ()).texts[0]
    head = "x" * (MAX_QUERY_BYTES - len(f" {known}"))
    assert f"{head} {known}" in retrieval.completions(f"{head} wireless m", ()).texts


@pytest.mark.parametrize("field", ["query", "session_queries"])
def test_a_text_far_too_long_is_refused_before_it_is_normalised(bundle, monkeypatch, field):
    # Sorting 48,000 combining marks takes seconds, in which no other call is answered.
    marks = "a" + "\u0301" * 24_000 + "\u0316" * 24_000
    longest = 0

    def measured(text: str) -> str:
        nonlocal longest
        longest = max(longest, len(text))
        return normalise(text)

    monkeypatch.setattr(translation, "normalise", measured)
    with pytest.raises(InvalidRequest) as raised:
        translated(bundle, **{field: [marks] if field == "session_queries" else marks})
    assert raised.value.metadata["max_bytes"] == str(MAX_QUERY_BYTES)
    assert longest < 10_000


def test_excluded_texts_are_limited_once_they_are_normalised_as_queries_are(bundle):
    with pytest.raises(InvalidRequest) as raised:
        translated(bundle, exclude=["a lamp", GROWING * 8])  # 24 bytes; 264 once normalised
    assert raised.value.metadata == {
        "field": "exclude[1]",
        "size_bytes": "264",
        "max_bytes": str(MAX_QUERY_BYTES),
    }
    bold = "\U0001d400" * MAX_QUERY_BYTES  # 4 bytes each, 1 once normalised
    excluded = translated(bundle, exclude=["A  Lamp", " ", bold]).excluded_keys
    assert {"a lamp", "a" * MAX_QUERY_BYTES} <= excluded


def test_white_space_of_any_length_and_characters_that_shrink_are_no_reason_to_refuse(bundle):
    assert translated(bundle, query=" " * 50_000 + "mouse").query == "mouse"
    bold = "\U0001d400" * MAX_QUERY_BYTES  # 4 bytes each, 1 once normalised
    assert translated(bundle, query=bold).query == "a" * MAX_QUERY_BYTES
    gap = " \n\u2003" * 10_000
    item = SideInformation(kind="answer", text=f"{gap}a{gap}text{gap}")
    question = translated(bundle, answer=f"{gap}an{gap}answer{gap}", side_information=[item])
    assert question.answer == "an answer"
    assert question.side_information == (Item("answer", "a text"),)


def test_long_texts_are_refused_by_what_is_left_of_them_without_white_space(bundle):
    for field, max_bytes in (("answer", 8192), ("side_information[0].text", 1024)):
        for size in (max_bytes, max_bytes + 1):
            text = "  a" * (size // 2) + "a" * (size % 2 + 1)
            item = [SideInformation(kind="answer", text=text)] if "[" in field else []
            fields = {"side_information": item} if item else {"answer": text}
            if size == max_bytes:
                assert translated(bundle, **fields)
                continue
            with pytest.raises(InvalidRequest) as failure:
                translated(bundle, **fields)
            assert failure.value.metadata["field"] == field
            assert failure.value.metadata["size_bytes"] == str(size)


def test_texts_that_grow_in_normalisation_are_cut_to_what_a_prompt_can_use(bundle):
    question = translated(
        bundle,
        answer=GROWING * 2_730,
        side_information=[SideInformation(kind="answer", text=GROWING * 341)] * 16,
    )
    texts = [question.answer, *(s.text for s in question.side_information)]
    assert max(map(len, texts)) <= 1024


async def test_a_smaller_cached_generation_is_still_called_degraded(bundle, runtime):
    pipeline = Pipeline(bundle, runtime, CONFIG, CLOCK)
    full, *_ = bundle.rungs["suggestion"]
    for _ in range(3):
        pipeline.worker.models.costs.observe(full.work, 1, 3600.0)
    first = await ask(pipeline, "never searched before")
    again = await ask(pipeline, "never searched before")
    degraded = Omission(Stage.GENERATE, Left.DEGRADED, Why.BUDGET)
    assert degraded in first.omissions
    assert degraded in again.omissions


async def test_a_queue_that_fills_up_before_scoring_costs_the_scores_not_the_answer(
    bundle, runtime
):
    models = msgspec.structs.replace(CONFIG.models, max_waiting=1, max_batch_size=1)
    manifest = msgspec.structs.replace(bundle.manifest, generator=None, encoder=None)
    scoring_only = dataclasses.replace(
        bundle,
        manifest=manifest,
        generator=None,
        encoder=None,
        rungs=dict.fromkeys(bundle.scenarios, ()),
    )
    config = msgspec.structs.replace(CONFIG, models=models)
    pipeline = Pipeline(scoring_only, runtime, config, CLOCK)
    answers = await asyncio.gather(*(ask(pipeline, f"odd thing {i}") for i in range(8)))
    assert all(a.suggestions for a in answers)
    overload = Omission(Stage.SCORE, Left.SKIPPED, Why.OVERLOAD)
    assert 0 < sum(overload in a.omissions for a in answers) < 8


async def test_a_query_of_many_tokens_fits_the_encoder_whatever_the_length_of_prompts(
    tiny_bundle, tmp_path, runtime
):
    directory = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    content = json.loads((directory / "manifest.json").read_text())
    content |= {"generator": None, "click_model": None}
    content["prompt"]["max_tokens"] = 256
    (directory / "manifest.json").write_text(json.dumps(content))
    pipeline = Pipeline(load_bundle(directory, runtime), runtime, CONFIG, CLOCK)
    answer = await ask(pipeline, "\U00010301" * 64)  # 256 bytes, about as many tokens
    assert {o.reason for o in answer.omissions} == {Why.NOT_IN_BUNDLE}


@pytest.mark.parametrize("name", ["tokenizer.json", "generator.onnx", "index/popularity.npy"])
def test_a_file_in_use_that_the_manifest_does_not_vouch_for_is_refused(
    tiny_bundle, tmp_path, runtime, name
):
    directory = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    content = json.loads((directory / "manifest.json").read_text())
    del content["files"][name]
    (directory / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=f"{name}: "):
        load_bundle(directory, runtime)


@pytest.mark.parametrize("text", ["\U0001fa77 shirt", "\U0001faea mug"])  # of Unicode 15 and 16
def test_characters_newer_than_this_python_are_taken(bundle, text):
    assert translated(bundle, query=text).query == text


@pytest.mark.parametrize("character", ["\uffff", "\ufdd0", "\U0010fffe", "\x00", "\x9f"])
def test_noncharacters_and_control_characters_are_refused(bundle, character):
    with pytest.raises(InvalidRequest, match="no control characters and no noncharacters"):
        translated(bundle, query=f"blue{character}shirt")


@pytest.mark.parametrize("field", ["session_id", "user_key"])
@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\x1c", "\x85", "\x00", "\uffff"])
def test_white_space_that_is_a_control_character_is_refused_in_ids(bundle, field, character):
    with pytest.raises(InvalidRequest, match=f"{field} must hold .* no noncharacters") as refusal:
        translated(bundle, **{field: f"a{character}b"})
    assert refusal.value.metadata["field"] == field


@pytest.mark.parametrize("text", ["two words", "a\u00a0b", "\u0915\u094d\u200d\u0937"])
def test_other_characters_are_taken_in_ids(bundle, text):
    assert translated(bundle, session_id=text, user_key=text)


def test_no_more_side_information_is_tokenised_than_a_prompt_has_room_for(bundle, monkeypatch):
    num_read = 0

    def counted(texts: list[str]) -> None:
        nonlocal num_read
        num_read += len(texts)

    vocabulary = type(bundle.vocabulary)
    encode, encode_batch = vocabulary.encode, vocabulary.encode_batch
    monkeypatch.setattr(vocabulary, "encode", lambda v, t: (counted([t]), encode(v, t))[1])
    monkeypatch.setattr(
        vocabulary, "encode_batch", lambda v, t: (counted(t), encode_batch(v, t))[1]
    )
    items = [Item("session", f"wireless mouse number {i}") for i in range(16)]
    prompt = bundle.renderer.generation_prompt("suggestion", "garden chair", items)
    assert len(prompt.ids) <= bundle.manifest.prompt.max_tokens
    assert num_read < 10


@pytest.mark.parametrize("is_public", [True, False])
def test_a_token_says_whether_all_that_was_told_is_public(bundle, is_public):
    keys = KeyRing(active_key_id="k", secrets={"k": b"s" * 32})
    response = response_of(
        Answer(suggestions=(), auxiliary_text="", omissions=(), is_public=is_public),
        translated(bundle),
        request_id="r",
        session_id="",
        bundle_id="b",
        keys=keys,
        probe=Probe(CLOCK),
    )
    assert AttributionToken.open(response.attribution_token, keys).is_public == is_public


@pytest.mark.parametrize("step_s", [-86_400, 86_400])
async def test_a_step_of_the_wall_clock_changes_times_in_tokens_and_nothing_else(
    bundle, runtime, monkeypatch, step_s
):
    pipeline = Pipeline(bundle, runtime, CONFIG, CLOCK)
    before_s = time.time()
    first = await ask(pipeline, "wireless mouse")
    now_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + step_s * 1_000_000_000)
    monkeypatch.setattr(time, "time", lambda: now_ns() / 1e9 + step_s)
    again = await ask(pipeline, "wireless mouse")
    assert again.suggestions == first.suggestions
    assert again.omissions == (Omission(Stage.GENERATE, Left.SKIPPED, Why.CACHED),)
    question = translated(bundle)
    assert 0 < question.deadline.left_s() <= 1.0
    keys = KeyRing(active_key_id="k", secrets={"k": b"s" * 32})
    response = response_of(
        again,
        question,
        request_id="r",
        session_id="",
        bundle_id="b",
        keys=keys,
        probe=Probe(CLOCK),
    )
    made_ms = AttributionToken.open(response.attribution_token, keys).time_unix_ms
    assert made_ms / 1000 - before_s == pytest.approx(step_s, abs=60)
