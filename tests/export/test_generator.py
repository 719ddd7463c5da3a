"""The decode graph equals one obvious forward pass per token, in any batch and padding."""

from pathlib import Path
from typing import Any

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

from engine.execution.device import CPU, Device, check_available
from engine.formats.completion import completed
from engine.formats.vocabulary import EOS_ID, FIRST_TEXT_ID, SEP_ID
from export import parity
from export.calibration import activation_scales
from export.checkpoint import Run, decoder_checkpoint
from export.encoder import build_encoder
from export.generator import Mode, build_generator
from export.requests import decoding, max_new_tokens, sample_requests
from export.sample import write_sample_run
from train.generation.decoder import DecoderShape
from train.generation.reference import decode

MODES: tuple[Mode, ...] = ("slots", "list", "beam")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("generator") / "run"
    write_sample_run(directory, seed=3)
    return Run(directory)


@pytest.fixture(params=["cpu", "cuda", "tensorrt"])
def device(request: pytest.FixtureRequest, run: Run) -> Device:
    """Every device that this machine has."""
    device = Device(request.param)
    try:
        check_available(device)
        if device != CPU:  # which may be known and not start
            parity.session_of(build_encoder(run.encoder()), device=device)
    except ValueError as error:
        pytest.skip(str(error))
    return device


def graph_session(
    run: Run, mode: Mode, precision: str = "fp32", device: Device = CPU
) -> ort.InferenceSession:
    checkpoint = run.generator()
    tables = checkpoint.cos_sin(run.prompt.max_tokens + max_new_tokens(run, mode) + 24)
    scales = None
    if precision == "int8":
        prompts = [r.prompt.ids for r in sample_requests(run, 24, seed=9)]
        scales = activation_scales(
            checkpoint.model, lambda: [checkpoint.model(torch.tensor([p])) for p in prompts]
        )
    return parity.session_of(
        build_generator(
            checkpoint.state,
            checkpoint.shape,
            tables,
            mode=mode,
            activation_scales=scales,
            with_logprobs=True,
            real_type="float16" if precision == "fp16" else "float32",
        ),
        device=device,
    )


@pytest.mark.parametrize("mode", MODES)
def test_fp32_graph_equals_the_reference(run: Run, mode: Mode, device: Device) -> None:
    requests = sample_requests(run, 30, seed=1)
    session = graph_session(run, mode, device=device)
    figures = parity.check_reference(session, run.generator(), run, requests, mode)
    assert figures["equal"] >= 0.999 * figures["sequences"]
    assert figures["max_logprob_difference"] < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
def test_fp32_graph_equals_the_reference_on_500_prompts(run: Run, mode: Mode) -> None:
    requests = sample_requests(run, 500, seed=2)
    session = graph_session(run, mode)
    figures = parity.check_reference(session, run.generator(), run, requests, mode)
    assert figures["equal"] >= 0.999 * figures["sequences"]


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_graph_writes_what_fp32_writes(run: Run, mode: Mode, device: Device) -> None:
    requests = sample_requests(run, 48, seed=6)
    exact, half = graph_session(run, mode), graph_session(run, mode, "fp16", device)
    figures = parity.agreement(exact, half, run.generator(), run, requests, mode)
    parity.check_agreement(figures, "fp16")
    assert figures["equal_share"] > (0.8 if mode == "list" else 0.95)  # lists are longer
    assert figures["mean_token_logprob_gap"] < 2e-3


@pytest.mark.parametrize("mode", MODES)
def test_int8_answer_does_not_depend_on_neighbours_or_padding(run: Run, mode: Mode) -> None:
    session = graph_session(run, mode, "int8")
    figures = parity.check_batch_invariance(session, run, sample_requests(run, 96, seed=4), mode)
    assert figures["max_logprob_difference"] <= 1e-4


def test_rows_with_scales_of_their_own_are_nearer_to_fp32(run: Run) -> None:
    checkpoint = run.generator()
    prompts = [r.prompt.ids for r in sample_requests(run, 12, seed=9)]
    shared = activation_scales(
        checkpoint.model, lambda: [checkpoint.model(torch.tensor([p])) for p in prompts]
    )
    by_row = {key: scale if key == "lm_head" else None for key, scale in shared.items()}
    exact, requests = graph_session(run, "slots"), sample_requests(run, 24, seed=5)
    gaps, counts = list[float](), list[int]()
    for scales in (shared, by_row):
        graph = build_generator(
            checkpoint.state,
            checkpoint.shape,
            checkpoint.cos_sin(128),
            activation_scales=scales,
            with_logprobs=True,
        )
        session = parity.session_of(graph)
        parity.check_batch_invariance(session, run, requests, "slots")
        figures = parity.agreement(exact, session, checkpoint, run, requests, "slots")
        gaps.append(figures["mean_token_logprob_gap"])
        counts.append(sum(n.op_type == "MatMulIntegerToFloat" for n in graph.graph.node))
    assert counts[0] == counts[1] > 1
    assert gaps[1] < gaps[0]


def test_reference_check_notices_another_model(run: Run, tmp_path: Path) -> None:
    write_sample_run(tmp_path / "other", seed=4)
    session = graph_session(run, "slots")
    with pytest.raises(parity.ParityError, match="differs from the torch reference"):
        parity.check_reference(
            session, Run(tmp_path / "other").generator(), run, sample_requests(run, 6, 0), "slots"
        )


def test_reference_check_notices_other_probabilities_of_the_same_texts(run: Run) -> None:
    checkpoint = run.generator()
    sharper = {**checkpoint.state, "norm.weight": checkpoint.state["norm.weight"] * 1.1}
    tables = checkpoint.cos_sin(run.prompt.max_tokens + 24)
    session = parity.session_of(
        build_generator(sharper, checkpoint.shape, tables, mode="slots", with_logprobs=True)
    )
    with pytest.raises(parity.ParityError, match=r"log-probability is .*, must be at most 0\.001"):
        parity.check_reference(session, checkpoint, run, sample_requests(run, 6, 0), "slots")


@pytest.mark.parametrize("mode", MODES)
def test_reference_check_does_not_take_everything_for_a_tie(run: Run, mode: Mode) -> None:
    indifferent = run.generator()
    with torch.no_grad():
        indifferent.model.model.norm.weight.zero_()
    session, requests = graph_session(run, mode), sample_requests(run, 6, 0)
    with pytest.raises(parity.ParityError, match=r"near ties in \d of 6 requests, at most 1 may"):
        parity.check_reference(session, indifferent, run, requests, mode)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    num_slots=st.integers(1, 5),
    num_beams=st.integers(1, 5),
    limit=st.integers(-2, 9),
    seed=st.integers(0, 1000),
)
def test_any_shape_gives_what_each_row_gives_alone(
    run: Run, mode: Mode, lengths: list[int], num_slots: int, num_beams: int, limit: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size = run.vocabulary.size
    prompts = [rng.integers(0, size, n).tolist() for n in lengths]
    slots = np.stack([rng.permutation(np.arange(4, 20))[:num_slots] for _ in lengths])
    limits = np.maximum(rng.integers(-1, 2, slots.shape) + limit, -1)
    if mode == "beam":  # the last num_beams begin alike and share a limit
        slots[:, -num_beams:], limits[:, -num_beams:] = slots[:, -1:], limits[:, -1:]
    first = rng.integers(FIRST_TEXT_ID, size, len(lengths))
    ranges = np.stack([first, np.minimum(first + rng.integers(1, 50), size)], 1)
    ids, mask = parity.pad(prompts)
    sequences, _ = _cached_session(run, mode).run(
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
    row = int(rng.integers(len(lengths)))
    expected = decode(
        run.generator().model,
        prompts[row],
        slots[row].tolist(),
        np.maximum(limits[row], 1).tolist(),
        (int(ranges[row, 0]), int(ranges[row, 1])),
        mode,
    )
    for got, one in zip(sequences[row].tolist(), expected, strict=True):
        if min(one.gaps) > parity.MAX_TIE_GAP:
            assert got[: len(one.ids)] == one.ids
            assert not any(got[len(one.ids) :])


_sessions: dict[tuple[Path, Mode], ort.InferenceSession] = {}


def _cached_session(run: Run, mode: Mode = "slots") -> ort.InferenceSession:
    if (run.directory, mode) not in _sessions:
        _sessions[run.directory, mode] = graph_session(run, mode)
    return _sessions[run.directory, mode]


def test_more_beams_than_allowed_tokens_end_empty(run: Run) -> None:
    feed = {
        "input_ids": np.asarray([[200, 201, 202]]),
        "attention_mask": np.ones((1, 3), np.int64),
        "slots": np.full((1, 4), 5),
        "max_new_tokens": np.ones((1, 4), np.int64),
        "first_token_range": np.asarray([[300, 302]]),
    }
    sequences = _cached_session(run, "beam").run(["sequences"], feed)[0][0]
    assert sorted(sequences[:2, 0].tolist()) == [300, 301]
    assert sequences[2:, 0].tolist() == [EOS_ID, EOS_ID]


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
def test_completions_start_with_what_was_typed(run: Run, mode: Mode) -> None:
    session = graph_session(run, mode, "int8")
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
        if token in (0, EOS_ID):
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
    expected = decode(model, prompt, (5, 6, 7), (6, 6, 6), (FIRST_TEXT_ID, 512))
    for got, one in zip(sequences, expected, strict=True):
        assert got[: len(one.ids)] == one.ids


@pytest.mark.parametrize("is_by_row", [False, True])
def test_biases_count_in_int8(is_by_row: bool) -> None:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=96, attention_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (1.0 if "bias" in name else 0.2))
    checkpoint = decoder_checkpoint(model)
    prompts = torch.randint(FIRST_TEXT_ID, 512, (24, 11))
    scales = activation_scales(model, lambda: model(prompts))
    if is_by_row:
        scales = {key: scale if key == "lm_head" else None for key, scale in scales.items()}
    bare = {k: v * 0 if k.endswith(".bias") else v for k, v in checkpoint.state.items()}
    feed = {
        "input_ids": prompts.numpy(),
        "attention_mask": np.ones_like(prompts.numpy()),
        "slots": np.full((24, 1), 5),
        "max_new_tokens": np.full((24, 1), 1),
        "first_token_range": np.full((24, 2), [FIRST_TEXT_ID, 512]),
    }

    def logprobs(state: Any, scales: Any) -> Any:
        graph = build_generator(
            state,
            checkpoint.shape,
            checkpoint.cos_sin(64),
            activation_scales=scales,
            with_logprobs=True,
        )
        return parity.session_of(graph).run(["logprobs"], feed)[0]

    exact = logprobs(checkpoint.state, None)
    gap, gap_without = (
        np.abs(logprobs(state, scales) - exact).mean() for state in (checkpoint.state, bare)
    )
    assert gap < 0.3 * gap_without


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
