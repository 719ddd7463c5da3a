"""The benchmark's rival, written with transformers alone, does the work that alignment does."""

from argparse import Namespace
from pathlib import Path

from benchmarks.alignment import compare


def test_both_learn_the_same_from_the_same_texts(trained_run: Path) -> None:
    asked = Namespace(run=trained_run, size="tiny", steps=1, prompts=4, width=16, threads=1)
    figures = compare(asked)
    difference, in_common = figures["loss_difference"], figures["texts_in_common"]
    assert isinstance(difference, float)
    assert isinstance(in_common, float)
    assert difference < 1e-3
    assert in_common > 0.5
