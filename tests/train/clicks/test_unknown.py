"""Rows below k are read for calibration from the raw log, as training rows look."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.formats.features import FEATURE_NAMES
from train.clicks.data import read_requests
from train.clicks.unknown import unknown_requests
from train.mining.logs import _IMPRESSIONS  # pyright: ignore[reportPrivateUsage]

IS_KNOWN = FEATURE_NAMES.index("is_known")


def write_raw(run: Path, path: Path, *, unknown_share: float) -> pa.Table:
    """Writes the mined impressions as a raw log: some texts are new, cases and spaces are odd."""
    table = pq.read_table(run / "mined/impressions.parquet")
    random = np.random.default_rng(0)
    texts = [
        f"  Unheard {text}" if random.random() < unknown_share else text.upper()
        for text in table["text"].to_pylist()
    ]
    table = table.set_column(table.column_names.index("text"), "text", pa.array(texts))
    for name, value in (("shown", True), ("session_id", "s")):
        table = table.append_column(name, pa.array([value] * table.num_rows))
    needed = [c.name for c in _IMPRESSIONS if c.is_required]
    pq.write_table(table.select([*needed, "propensity"]), path)
    return table


def test_held_out_requests_with_unknown_texts_look_like_training_ones(
    clicked_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "raw.parquet"
    raw = write_raw(clicked_run, path, unknown_share=0.1).to_pylist()
    found = unknown_requests(clicked_run, str(path), max_edges=50, max_requests=10_000, seed=0)
    mined = read_requests(clicked_run, max_edges=50)
    assert found is not None
    assert mined is not None
    held_out = [r for r in raw if r["split"] == "valid"]
    wanted = {r["request_id"] for r in held_out if "Unheard" in r["text"]}
    assert len(found) == len(wanted)
    assert found.is_valid_R.all()
    rows = [r for r in held_out if r["request_id"] in wanted]
    assert found.clicked_N.tolist() == [r["clicked"] for r in rows]
    is_known = ["Unheard" not in r["text"] for r in rows]
    assert (found.features_NF[:, IS_KNOWN] > 0).tolist() == is_known
    # Known rows have the features and ids that they have in training.
    of_mined = {(r["request_id"], r["position"]): i for i, r in enumerate(raw)}
    for i, row in enumerate(rows):
        if is_known[i]:
            at = of_mined[row["request_id"], row["position"]]
            assert found.features_NF[i] == pytest.approx(mined.features_NF[at])
            same = found.candidates[found.candidate_N[i]]
            assert same == mined.candidates[mined.candidate_N[at]]


def test_rows_that_mining_leaves_out_are_left_out_and_none_is_no_click(
    clicked_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "raw.parquet"
    write_raw(clicked_run, path, unknown_share=0.3)
    whole = pq.read_table(path)
    expected = unknown_requests(clicked_run, str(path), max_edges=50, seed=0)
    assert expected is not None
    row = {**whole.to_pylist()[-1], "text": "unheard", "clicked": None}
    row["side_information"] = [{"kind": "session", "text": None}, {"kind": None, "text": "tea"}]
    added = [{**row, name: None} for name in ("request_id", "query", "position", "text")]
    added.append({**row, "request_id": "one more", "position": 1})
    damaged = pa.concat_tables([whole, pa.Table.from_pylist(added, schema=whole.schema)])
    pq.write_table(damaged, path)
    found = unknown_requests(clicked_run, str(path), max_edges=50, seed=0)
    assert found is not None
    assert len(found) == len(expected) + 1
    assert len(found.clicked_N) == len(expected.clicked_N) + 1
    assert found.clicked_N.sum() == expected.clicked_N.sum()


def test_the_choice_is_limited_and_repeats(clicked_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "raw.parquet"
    write_raw(clicked_run, path, unknown_share=0.5)
    first, again = (
        unknown_requests(clicked_run, str(path), max_edges=50, max_requests=20, seed=1)
        for _ in range(2)
    )
    assert first is not None
    assert again is not None
    assert len(first) == 20
    assert first.contexts == again.contexts


def test_without_unknown_texts_there_is_none(clicked_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "raw.parquet"
    write_raw(clicked_run, path, unknown_share=0.0)
    assert unknown_requests(clicked_run, str(path), max_edges=50, seed=0) is None
    with pytest.raises(ValueError, match="there is no"):
        unknown_requests(clicked_run, str(tmp_path / "no.parquet"), max_edges=50, seed=0)
