"""The decode graph equals one obvious forward pass per token, in any batch and padding."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen3Config,
)

from engine.completion import completed
from engine.vocabulary import EOS_ID, FIRST_TEXT_ID, SEP_ID
from export import parity
from export.calibration import activation_scales
from export.checkpoint import Run, decoder_checkpoint
from export.decoder import DecoderShape
from export.generator import build_generator
from export.requests import decoding, max_new_tokens, sample_requests
from export.sample import write_sample_run
from train.reference import decode

MODES = ("slots", "list")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("generator") / "run"
    write_sample_run(directory, seed=3)
    return Run(directory)


def graph_session(run: Run, mode: str, *, int8: bool) -> ort.InferenceSession:
    checkpoint = run.generator()
    tables = checkpoint.cos_sin(run.prompt.max_tokens + max_new_tokens(run, mode) + 1)
    scales = None
    if int8:
        prompts = [r.prompt.ids for r in sample_requests(run, 24, seed=9)]
        scales = activation_scales(
            checkpoint.model, lambda: [checkpoint.model(torch.tensor([p])) for p in prompts]
        )
    return parity.session_of(
        build_generator(
            checkpoint.state,
            checkpoint.shape,
            tables,
            activation_scales=scales,
            with_logprobs=True,
        )
    )


@pytest.mark.parametrize("mode", MODES)
def test_fp32_graph_equals_the_reference(run: Run, mode: str) -> None:
    requests = sample_requests(run, 30, seed=1)
    session = graph_session(run, mode, int8=False)
    figures = parity.check_reference(session, run.generator(), run, requests, mode)
    assert figures["equal"] >= 0.999 * figures["sequences"]
    assert figures["max_logprob_difference"] < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_fp32_graph_equals_the_reference_on_200_prompts(run: Run, mode: str) -> None:
    requests = sample_requests(run, 200, seed=2)
    session = graph_session(run, mode, int8=False)
    figures = parity.check_reference(session, run.generator(), run, requests, mode)
    assert figures["equal"] >= 0.999 * figures["sequences"]


@pytest.mark.parametrize("mode", MODES)
def test_int8_answer_does_not_depend_on_neighbours_or_padding(run: Run, mode: str) -> None:
    session = graph_session(run, mode, int8=True)
    figures = parity.check_batch_invariance(session, run, sample_requests(run, 96, seed=4), mode)
    assert figures["max_logprob_difference"] <= 1e-4


def test_reference_check_notices_another_model(run: Run, tmp_path: Path) -> None:
    write_sample_run(tmp_path / "other", seed=4)
    session = graph_session(run, "slots", int8=False)
    with pytest.raises(parity.ParityError, match="differs from the torch reference"):
        parity.check_reference(
            session, Run(tmp_path / "other").generator(), run, sample_requests(run, 6, 0), "slots"
        )


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    num_slots=st.integers(1, 5),
    limit=st.integers(-2, 9),
    seed=st.integers(0, 1000),
)
def test_any_shape_gives_what_each_slot_gives_alone(
    run: Run, lengths: list[int], num_slots: int, limit: int, seed: int
) -> None:
    session = _cached_session(run)
    rng = np.random.default_rng(seed)
    size = run.vocabulary.size
    prompts = [rng.integers(0, size, n).tolist() for n in lengths]
    slots = rng.integers(4, 20, (len(lengths), num_slots))
    limits = np.maximum(rng.integers(-1, 2, slots.shape) + limit, -1)
    first = rng.integers(FIRST_TEXT_ID, size, len(lengths))
    ranges = np.stack([first, np.minimum(first + rng.integers(1, 50), size)], 1)
    ids, mask = parity.pad(prompts)
    sequences, _ = session.run(
        None,
        {
            "input_ids": ids,
            "attention_mask": mask,
            "slots": slots,
            "max_new_tokens": limits,
            "first_token_range": ranges,
        },
    )
    assert sequences.shape[:2] == slots.shape
    row, slot = int(rng.integers(len(lengths))), int(rng.integers(num_slots))
    expected = decode(
        run.generator().model,
        prompts[row],
        int(slots[row, slot]),
        max(1, int(limits[row, slot])),
        (int(ranges[row, 0]), int(ranges[row, 1])),
    )
    got = sequences[row, slot].tolist()
    if min(expected.gaps) > parity.MAX_TIE_GAP:
        assert got[: len(expected.ids)] == expected.ids
        assert not any(got[len(expected.ids) :])


_sessions: dict[Path, ort.InferenceSession] = {}


def _cached_session(run: Run) -> ort.InferenceSession:
    if run.directory not in _sessions:
        _sessions[run.directory] = graph_session(run, "slots", int8=False)
    return _sessions[run.directory]


def test_ids_out_of_range_do_not_fail_the_batch(run: Run) -> None:
    session = _cached_session(run)
    ids = np.asarray([[200, 10**9, 201], [200, -5, 201]])
    feed = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "slots": np.full((2, 2), 5),
        "max_new_tokens": np.full((2, 2), 3),
        "first_token_range": np.asarray([[FIRST_TEXT_ID, run.vocabulary.size]] * 2),
    }
    assert session.run(["sequences"], feed)[0].shape == (2, 2, 3)


@pytest.mark.parametrize("mode", MODES)
def test_completions_start_with_what_was_typed(run: Run, mode: str) -> None:
    session = graph_session(run, mode, int8=True)
    requests = [r for r in sample_requests(run, 60, seed=8) if r.scenario == "completion"]
    for request in requests:
        healed = request.prompt.healed
        assert healed is not None
        generated = parity.generate(session, [(request, decoding(run, "completion", mode))])[0]
        for ids in generated.ids:
            texts = _split(ids)
            prefix = b" " + request.query.encode()
            for text in texts:
                whole = run.vocabulary.bytes_of([*healed.kept_ids, *text])
                assert whole.startswith(prefix)
                assert completed(run.vocabulary, healed, text) in (
                    None,
                    whole.decode(errors="replace")[1:],
                )


def _split(ids: list[int]) -> list[list[int]]:
    texts: list[list[int]] = [[]]
    for token in ids:
        if token == EOS_ID:
            break
        if token == SEP_ID:
            texts.append([])
        else:
            texts[-1].append(token)
    return [t for t in texts if t]


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(attention_bias=True),
        Qwen2Config(),
        Qwen3Config(head_dim=32),
        LlamaConfig(tie_word_embeddings=False),
    ],
    ids=["llama with biases", "qwen2", "qwen3", "untied output"],
)
def test_other_architectures_equal_the_reference(config: LlamaConfig) -> None:
    torch.manual_seed(1)
    sizes = {
        "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96,
    }  # fmt: skip
    for name, size in sizes.items():
        setattr(config, name, size)
    config.tie_word_embeddings = config.tie_word_embeddings and config.model_type == "llama"
    if config.model_type == "llama":
        config.head_dim = 16
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    checkpoint = decoder_checkpoint(model)
    session = parity.session_of(
        build_generator(checkpoint.state, checkpoint.shape, checkpoint.cos_sin(64))
    )
    prompt = list(range(200, 211))
    feed = {
        "input_ids": np.asarray([prompt]),
        "attention_mask": np.ones((1, len(prompt)), np.int64),
        "slots": np.asarray([[5, 6, 7]]),
        "max_new_tokens": np.full((1, 3), 6),
        "first_token_range": np.asarray([[FIRST_TEXT_ID, 512]]),
    }
    sequences = session.run(["sequences"], feed)[0][0].tolist()
    for slot, got in zip((5, 6, 7), sequences, strict=True):
        expected = decode(model, prompt, slot, 6, (FIRST_TEXT_ID, 512))
        assert got[: len(expected.ids)] == expected.ids


def test_unsupported_architecture_is_refused_by_name() -> None:
    config = LlamaConfig(hidden_act="gelu")
    with pytest.raises(ValueError, match="hidden_act 'gelu'"):
        DecoderShape.of(config)
    config.model_type = "gpt2"
    with pytest.raises(ValueError, match="model_type 'gpt2'"):
        DecoderShape.of(config)


def test_vocabulary_that_is_no_multiple_of_128_is_refused() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=500,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    checkpoint = decoder_checkpoint(model)
    with pytest.raises(ValueError, match="multiple of 128"):
        build_generator(checkpoint.state, checkpoint.shape, checkpoint.cos_sin(8))
