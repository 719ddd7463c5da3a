"""A contest among real processes: who fails is named and left out, the others go on."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.peers import contest, report
from benchmarks.peers.catalogue import Peer, peers, variant
from benchmarks.peers.environments import Environment, python_of

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
    assert figures["best_peer"] == "steady"
    assert figures["ratio_openvino_2"] is None
    assert figures["failures"] == failures
    assert report.table(outcome).row_count == 3


def test_ratios_are_of_medians_and_the_best_peer_is_chosen_for_each_number_of_prompts() -> None:
    def result(ours: float, a: float, b: float) -> dict[tuple[str, str], float]:
        return {
            ("ours", "int8"): ours,
            ("openvino", "x"): a,
            ("openvino", "slower x"): a + 1,
            ("other-peer", "y"): b,
            ("floor int8", "z"): ours / 2,
        }

    rounds: dict[int, Sequence[report.Round]] = {
        1: [result(2, 4, 5), result(4, 6, 7), result(3, 100, 9)],
        4: [result(10, 30, 20)],
        16: [result(10, 20, 30)],
    }
    figures = report.figures(report.Outcome("small", rounds=rounds))
    assert figures["best_peer"] == "openvino"
    assert [figures[f"best_peer_{n}"] for n in rounds] == ["openvino", "other-peer", "openvino"]
    assert [figures[f"ratio_{n}"] for n in rounds] == [2.0, 2.0, 2.0]
    assert figures["ratio_rounds_1"] == 2.0
    assert figures["ratio_openvino_4"] == 3.0
    assert figures["ratio_other_peer_16"] == 3.0
    assert figures["floor_share"] == 0.5


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
