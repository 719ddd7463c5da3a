"""Cross-validation on panes with real clicks, here on made-up ones whose rule is known."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from train.evaluation.real_clicks import evaluate_real_clicks, read_panes

HEADER = "query\tquestion\tpos\toption\tcctr"


def write(path: Path, panes: list[tuple[str, list[str], list[float]]]) -> Path:
    lines = [HEADER]
    for query, options, shares in panes:
        lines += [
            f"{query}\twhich one?\t{i}\t{option}\t{share}"
            for i, (option, share) in enumerate(zip(options, shares, strict=True), 1)
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def made_panes(num_queries: int, *, by_overlap: float) -> list:
    """Panes of 4 options, two of which repeat the query; clicks fall with the position, too."""
    random = np.random.default_rng(0)
    panes = []
    for number in range(num_queries):
        query = f"thing{number}"
        options = [f"{query} a{number}", f"b{number} other", f"{query} c{number}", f"d{number} x"]
        order = random.permutation(4)
        level = by_overlap * (order % 2 == 0) - 0.7 * np.arange(4)
        level = level + random.gumbel(size=4)
        shares = np.zeros(4)
        shares[level.argmax()] = 1
        panes.append((query, [options[i] for i in order], shares.tolist()))
    return panes


def test_features_and_positions_together_beat_each_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "panes.tsv", made_panes(300, by_overlap=1.5))
    found = evaluate_real_clicks(path, num_resamples=100)
    assert (found.num_queries, found.num_panes) == (300, 300)
    assert found.beats_all
    assert found.gains["position"].low > 0
    assert found.gains["overlap"].low > 0
    assert found.rivals["popularity"].mean == pytest.approx(0.5, abs=0.02)
    assert found.rivals["position"].mean > 0.6
    assert found.without_position.mean > 0.6


def test_clicks_by_chance_are_not_predicted(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    panes = []
    for number, (query, options, _) in enumerate(made_panes(300, by_overlap=0)):
        del number
        panes.append((query, options, random.permutation([1.0, 0.0, 0.0, 0.0]).tolist()))
    found = evaluate_real_clicks(write(tmp_path / "panes.tsv", panes), num_resamples=100)
    assert found.model.low < 0.55
    assert found.model.mean < 0.57


def test_panes_without_a_preference_are_left_out(tmp_path: Path) -> None:
    panes = made_panes(20, by_overlap=1.0)
    panes += [("nobody", ["a", "b"], [0.0, 0.0]), ("tied", ["a", "b"], [0.5, 0.5])]
    found = evaluate_real_clicks(write(tmp_path / "p.tsv", panes), num_resamples=100)
    assert found.num_queries == 20


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([HEADER], "has no rows"),
        (["query\tpos\toption"], "has no column cctr"),
        ([HEADER, "q\tx\t1\ta\tnan"], "line 2: cctr is nan"),
        ([HEADER, "q\tx\t1\ta\t1.5"], "line 2: cctr is 1.5"),
        ([HEADER, "q\tx\tone\ta\t0"], "line 2: a value is missing or no number"),
        ([HEADER, "q\tx\t2\ta\t0"], "line 2: pos is 2"),
        ([HEADER, "q\tx\t1\ta\t0", "q\tx\t3\tb\t0"], "line 3: pos is 3"),
        ([HEADER, "q\tx\t1\ta\t0", "q\tx\t2\tb\t0"], "0 queries have a pane"),
        ([HEADER, "q\tx\t1\ta\t0", "q\tx\t2\tb\t1"], "1 queries have a pane"),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    tmp_path: Path, lines: list[str], complaint: str
) -> None:
    path = tmp_path / "panes.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        evaluate_real_clicks(path, num_folds=2, num_resamples=100)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("panes.tsv.gz", b"not gzip"),
        ("panes.tsv.gz", gzip.compress(HEADER.encode() * 99)[:-12]),
        ("panes.tsv.gz", gzip.compress(HEADER.encode())[:10] + b"\xff" * 20),
        ("panes.tsv", b"query\tpos\toption\tcctr\nna\xefve\t1\ta\t0\n"),
    ],
    ids=["plain", "cut", "damaged", "latin1"],
)
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: cannot be read"):
        read_panes(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.tsv: there is no such file"):
        read_panes(tmp_path / "no.tsv")
