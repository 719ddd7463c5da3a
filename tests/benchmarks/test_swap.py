"""Changes of releases are counted by who answers, not by how often an engine was told."""

from pathlib import Path

import pytest

from benchmarks.load.caller import Outcome
from benchmarks.load.settings import Load
from benchmarks.swap import Reload, measure, num_swaps


def answered(due_s: float, bundle_id: str) -> Outcome:
    return Outcome("suggestion", due_s, 0.0, 0.01, bundle_id=bundle_id)


@pytest.mark.parametrize(
    ("bundles", "num"),
    [
        ("AABBAABB", 3),  # every one took
        ("AABBBBBB", 1),  # the second was refused, so the third changed nothing
        ("AAAAAAAA", 0),
        ("AABAAAAB", 3),  # an answer or two are enough
        ("AAAABBAA", 0),  # each came too late to be told from the next
    ],
)
def test_a_reload_counts_once_another_release_answers_before_the_next(bundles, num):
    outcomes = [answered(float(due_s), bundle) for due_s, bundle in enumerate(bundles)]
    reloads = [Reload(2, "B"), Reload(4, "A"), Reload(6, "B")]
    assert num_swaps(reloads, outcomes, "A") == num


@pytest.mark.slow
def test_swaps_of_a_real_engine_are_seen_and_both_runs_ask_other_queries(tiny_bundle: Path):
    load = Load(
        target="",
        queries=tuple(f"lamp {i}" for i in range(400)),
        rate_rps=10.0,
        duration_s=12.0,
        budget_ms=500.0,
        deadline_ms=5000.0,
        mix={"suggestion": 1.0},
        prompts="distinct",
    )
    figures = measure(load, tiny_bundle, every_s=5.0, index_only=True)
    assert figures["num_reloads"] == 2
    assert figures["num_swaps"] in (1, 2)  # a slow machine may take the second one too late
