"""A contest among real processes: who fails is named and left out, the others go on."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.peers import contest, report
from benchmarks.peers.catalogue import Peer, ours, peers, variant
from benchmarks.peers.environments import Environment, python_of
from benchmarks.peers.models import (
    MODES,
    NEW_TOKENS,
    NUM_SUGGESTIONS,
    PROMPT_TOKENS,
    prompts_of,
    starts_of,
)
from benchmarks.peers.workers.ours import graph_of
from engine.formats.vocabulary import NUM_CONTROL_IDS
from export.checkpoint import decoder_checkpoint
from export.generator import build_generator
from train.models.backbone import llama_config, shapes_of

WORKER = str(Path(__file__).parent / "echo_worker.py")
PYTHON = Path(sys.executable)


def peer(name: str, *how: str) -> Peer:
    return Peer(
        name=name,
        worker=(WORKER,),
        environment=None,
        variants=tuple(variant(precision="fp32", how=h) for h in how),
        reference=variant(precision="fp32", how=how[0]),
    )


@pytest.fixture
def arena(tmp_path: Path) -> contest.Arena:
    model = tmp_path / "model"
    model.mkdir()
    (model / "vocabulary").write_text("2048")
    (model / "fingerprint").write_text("0")
    return contest.Arena(model=model, cache=tmp_path / "cache", num_threads=1)


@pytest.fixture
def opened() -> Iterator[list[contest.Entry]]:
    entries: list[contest.Entry] = []
    yield entries
    for entry in entries:
        entry.worker.close()


def test_variants_that_fail_are_reported_and_the_others_measured(
    arena: contest.Arena, opened: list[contest.Entry]
) -> None:
    mixed = peer("mixed", "refuses", "dies", "works", "stops early")
    lines: list[str] = []
    entries, failures = contest.trial(arena, PYTHON, mixed, [1, 2], lines.append)
    opened += entries
    assert [e.variant.name for e in entries] == ["fp32 works"]
    assert failures["fp32 refuses"] == "ValueError: no such model"
    assert failures["fp32 dies"] == "ended with status 7: illegal instruction"
    assert failures["fp32 stops early"] == (
        "gave 1 lists of [8] sequences of [7] tokens, not 1 of 8 of 8"
    )
    assert len(lines) == 1


def test_a_contender_that_dies_during_the_rounds_does_not_end_them(
    arena: contest.Arena, opened: list[contest.Entry]
) -> None:
    for name in ("ours", "steady", "unlucky"):
        entries, failures = contest.trial(arena, PYTHON, peer(name, "works"), [2], print)
        assert not failures
        opened += entries
    for entry in opened:
        entry.trial_ms[2] = 1.0  # none is so much slower than another that it sits rounds out
    os.kill(opened[-1].worker.pid, signal.SIGKILL)
    results, failures = contest.rounds(arena, opened, 2, 4)
    assert failures.keys() == {"unlucky"}
    assert len(results) == 4
    assert all(r.keys() == {("ours", "fp32 works"), ("steady", "fp32 works")} for r in results)

    outcome = report.Outcome("small", rounds={2: results}, failures=failures)
    figures = report.figures(outcome)
    assert figures["best_peer_slots_2"] == "steady"
    assert figures["best_peer"] is figures["ratio_2"] is figures["ratio_openvino_2"] is None
    assert figures["failures"] == failures
    assert report.table(outcome).row_count == 3


def test_ratios_are_of_medians_and_the_best_peer_is_chosen_for_each_number_of_prompts() -> None:
    def result(ours: float, a: float, b: float) -> dict[tuple[str, str], float]:
        return {
            ("ours", "int8"): ours,
            ("ours slots", "int8"): ours / 4,
            ("openvino beams", "x"): a,
            ("openvino beams", "slower x"): a + 1,
            ("other-peer beams", "y"): b,
            ("openvino", "x"): a / 2,
            ("other-peer", "y"): b * 2,
            ("floor int8", "z"): ours / 2,
        }

    rounds: dict[int, Sequence[report.Round]] = {
        1: [result(2, 4, 5), result(4, 6, 7), result(3, 100, 9)],
        4: [result(10, 30, 20)],
        16: [result(10, 20, 30)],
    }
    figures = report.figures(report.Outcome("small", rounds=rounds))
    assert figures["best_peer"] == "openvino beams"
    assert [figures[f"best_peer_{n}"] for n in rounds] == [
        "openvino beams", "other-peer beams", "openvino beams",
    ]  # fmt: skip
    assert [figures[f"ratio_{n}"] for n in rounds] == [2.0, 2.0, 2.0]
    assert figures["ratio_rounds_1"] == 2.0
    assert figures["ratio_openvino_beams_4"] == 3.0
    assert figures["ratio_other_peer_beams_16"] == 3.0
    # Those that do not search are compared with our graph that does not.
    assert [figures[f"best_peer_slots_{n}"] for n in rounds] == ["openvino"] * 3
    assert [figures[f"ratio_slots_{n}"] for n in rounds] == [4.0, 6.0, 4.0]
    assert figures["ratio_openvino_4"] == 6.0
    assert figures["ratio_other_peer_4"] == 16.0
    assert figures["floor_share"] == 0.5


@pytest.fixture
def tiny_arena(arena: contest.Arena) -> contest.Arena:
    """The model is one with random weights, and our graphs of it."""
    shapes = shapes_of("tiny")
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(shapes.generator, shapes.vocab_size))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=weight.shape[1] ** -0.5)
        embeddings: Any = model.get_input_embeddings()
        embeddings.weight[:NUM_CONTROL_IDS] = 0
    model.save_pretrained(arena.model / "checkpoint")
    (arena.model / "vocabulary").write_text(str(shapes.vocab_size))
    decoder = decoder_checkpoint(model)
    tables = decoder.cos_sin(PROMPT_TOKENS + NEW_TOKENS + 1)
    for mode in MODES:
        graph = build_generator(
            decoder.state, decoder.shape, tables, mode=mode, with_logprobs=mode == "beam"
        )
        graph_of(arena.model, mode, "fp32").write_bytes(graph.SerializeToString())
    return arena


def test_we_and_a_peer_search_as_widely_for_the_same_and_write_alike_from_a_token(
    tiny_arena: contest.Arena, opened: list[contest.Entry]
) -> None:
    searching = [p for p in (*ours(), *peers([])) if p.name in ("ours fp32", "transformers beams")]
    (slots,) = (p for p in ours() if p.name == "ours slots fp32")
    prompts, starts = prompts_of(tiny_arena.vocabulary, 2, seed=0), starts_of(tiny_arena.vocabulary)
    asked = {"prompts": prompts, "starts": starts, "new": NEW_TOKENS}
    searched, written = list[list[list[list[int]]]](), list[list[int]]()
    for contender in (*searching, slots):
        chosen = next(v for v in contender.variants if dict(v.options)["precision"] == "fp32")
        worker = tiny_arena.open(PYTHON, contender, "test")
        opened.append(contest.Entry(contender, chosen, worker, {}))
        worker.ask(120, do="load", **tiny_arena.task(contender, chosen))
        written.append(contest.greedy(tiny_arena, worker))
        lists = worker.ask(120, do="generate", **asked)["lists"]
        contest.check_lists(lists, len(prompts), NUM_SUGGESTIONS, NEW_TOKENS)
        searched.append(lists)
    assert written[0] == written[1] == written[2]
    assert searched[0] == searched[1] != searched[2]
    assert all(len(set(map(tuple, texts))) == NUM_SUGGESTIONS for texts in searched[0])


def test_an_environment_that_cannot_be_set_up_says_why(tmp_path: Path) -> None:
    absent = Environment(name="absent", steps=(("--no-index", "queryrec-no-such-package==1"),))
    with pytest.raises(OSError, match="No matching distribution found"):
        python_of(absent, tmp_path, print)


def test_every_peer_has_variants_and_bf16_only_where_the_cpu_has_it() -> None:
    def words(features: list[str]) -> set[str]:
        return {word for p in peers(features) for v in p.variants for _, word in v.options}

    assert all(p.variants for p in peers([]))
    assert not {"bf16", "bfloat16"} & words(["avx2"])
    assert {"bf16", "bfloat16"} <= words(["avx2", "avx512_bf16"])
