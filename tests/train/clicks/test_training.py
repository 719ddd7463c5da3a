"""Training of the click model: what it learns, goes on from, calibrates and refuses."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.formats.features import FEATURE_NAMES
from train.clicks import training
from train.clicks.data import ClickRequests, read_requests
from train.clicks.fitting import (
    _calibrations,  # pyright: ignore[reportPrivateUsage]
    check_logits,
)
from train.clicks.model import load_click_model
from train.clicks.scoring import click_logits
from train.clicks.training import ClickReport, train_click_model
from train.models.backbone import shapes_of
from train.settings import ClickModelConfig

SHAPE = shapes_of("tiny").click_model
EXAMINATION = [1.0, 0.7, 0.5, 0.35, 0.25]  # of the hand-made log


def test_trained_model_beats_position_and_finds_the_examination(
    clicked_run: Path, tmp_path: Path
) -> None:
    config = ClickModelConfig(num_epochs=4, batch_size=32, learning_rate=3e-3)
    reports = train_click_model(
        clicked_run, config, shape=SHAPE, max_edges=50, seed=0, output=tmp_path
    )
    assert reports is not None
    report = reports["suggestion"]
    assert report.model.auc > report.position_only.auc + 0.02
    assert report.model.normalised_entropy < report.position_only.normalised_entropy - 0.02
    assert report.popularity_auc == pytest.approx(0.5, abs=0.05)
    assert report.logit_gauc > 0.7
    assert report.model.relative_ece < 0.15

    curves = msgspec.json.decode((tmp_path / "position.json").read_bytes())
    assert curves["suggestion"] == pytest.approx(EXAMINATION, abs=0.1)
    calibration = msgspec.json.decode((tmp_path / "calibration.json").read_bytes())
    assert set(calibration) == {"suggestion", "completion", "clarification"}
    assert calibration["completion"] == [1, 0]  # never shown
    metrics = msgspec.json.decode(
        (tmp_path / "metrics.json").read_bytes(), type=dict[str, ClickReport]
    )
    assert metrics["suggestion"] == report
    assert not (tmp_path / "checkpoints").exists()

    requests = read_requests(clicked_run, max_edges=50)
    assert requests is not None
    loaded = load_click_model(tmp_path)
    chosen = np.array([5, 3, 2999])
    together = click_logits(loaded, requests, chosen)
    alone = [click_logits(loaded, requests, np.array([r])) for r in chosen]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    # The same text is p(click | seen) 0.8, 0.4, 0.2 or 0.1 by its second word.
    slope, intercept = calibration["suggestion"]
    valid = np.flatnonzero(requests.is_valid_R)
    p = 1 / (1 + np.exp(-slope * click_logits(loaded, requests, valid) - intercept))
    texts = pq.read_table(clicked_run / "mined/impressions.parquet")["text"].to_pylist()
    endings = np.array([texts[r].split()[1] for r in requests.rows(valid)])
    means = sorted(float(p[endings == e].mean()) for e in set(endings.tolist()))
    assert means == pytest.approx([0.1, 0.2, 0.4, 0.8], abs=0.1)


def test_an_older_model_learns_on_from_where_it_ended(
    clicked_run: Path, trained_run: Path, tmp_path: Path
) -> None:
    little = ClickModelConfig(
        num_epochs=0.02, batch_size=32, learning_rate=1e-5, matrix_learning_rate=1e-5
    )
    entropy = {}
    for name, start in (("on", trained_run), ("anew", None)):
        (tmp_path / name).mkdir()
        reports = train_click_model(
            clicked_run,
            little,
            shape=shapes_of("tiny").click_model,
            max_edges=32,
            seed=0,
            output=tmp_path / name,
            start=start,
        )
        assert reports is not None
        entropy[name] = reports["all"].model.normalised_entropy
    requests = read_requests(clicked_run, max_edges=32)
    assert requests is not None
    valid = np.flatnonzero(requests.is_valid_R)[:50]
    before, after = (
        click_logits(load_click_model(d), requests, valid)
        for d in (trained_run / "click_model", tmp_path / "on")
    )
    np.testing.assert_allclose(after, before, atol=0.05)  # a few small steps away
    assert entropy["on"] < entropy["anew"] - 0.02


@pytest.mark.parametrize(
    ("name", "message"), [("other", "another tokenizer"), ("none", "no click")]
)
def test_a_start_that_does_not_fit_is_refused(
    clicked_run: Path, trained_run: Path, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "none").mkdir()
    shutil.copytree(trained_run / "click_model", tmp_path / "other/click_model")
    read = json.loads((trained_run / "tokenizer.json").read_bytes())
    one, other = list(read["model"]["vocab"])[-2:]
    vocab = read["model"]["vocab"]
    vocab[one], vocab[other] = vocab[other], vocab[one]  # as many ids, of other texts
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(read))
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        train_click_model(
            clicked_run,
            ClickModelConfig(),
            shape=shapes_of("tiny").click_model,
            max_edges=32,
            seed=0,
            output=tmp_path / "out",
            start=tmp_path / name,
        )


def test_calibration_of_few_known_rows_or_none_is_no_error(clicked_run: Path) -> None:
    requests = read_requests(clicked_run, max_edges=50)
    assert requests is not None
    valid = np.flatnonzero(requests.is_valid_R)
    is_known_N = np.zeros(len(requests.rows(valid)), np.bool_)
    logits = np.random.default_rng(0).normal(size=len(is_known_N)).astype(np.float32)
    whole = _calibrations(requests, valid, logits, {})
    assert _calibrations(requests, valid, logits, {}, is_known_N) == whole
    is_known_N[0] = True  # a row alone has no spread
    one = _calibrations(requests, valid, logits, {}, is_known_N)
    assert sum(one[name] != whole[name] for name in whole) == 1
    started = _calibrations(requests, valid, logits, {}, ~is_known_N & False, whole)
    assert started == whole


def rare_scenario(num_requests: int, texts: list[int], contexts: list[list[int]]) -> ClickRequests:
    """Held-out requests: 50 of one scenario, and some of a rare one with one row each."""
    own = range(num_requests)
    candidate_N = np.array([0, 1] * 50 + [texts[i % len(texts)] for i in own])
    position_N = np.array([0, 1] * 50 + [0] * num_requests)
    num_rows = len(candidate_N)
    return ClickRequests(
        scenarios=["common", "rare"],
        scenario_R=np.array([0] * 50 + [1] * num_requests),
        query_R=np.arange(50 + num_requests),
        is_valid_R=np.ones(50 + num_requests, np.bool_),
        contexts=[[1]] * 50 + [contexts[i % len(contexts)] for i in own],
        offsets=np.array([*range(0, 101, 2), *range(101, num_rows + 1)]),
        candidates=[[200], [201]],
        candidate_N=candidate_N,
        features_NF=np.zeros((num_rows, len(FEATURE_NAMES)), np.float32),
        position_N=position_N,
        rank_N=position_N,
        clicked_N=np.random.default_rng(0).random(num_rows) < 0.3,
    )


@pytest.mark.parametrize(
    ("num_requests", "texts", "contexts"), [(1, [0], [[1]]), (9, [0, 1], [[1]]), (30, [0], [[1]])]
)
def test_a_scenario_of_few_or_equal_held_out_rows_needs_no_spread(
    num_requests: int, texts: list[int], contexts: list[list[int]]
) -> None:
    requests = rare_scenario(num_requests, texts, contexts)
    logits = np.random.default_rng(1).normal(size=len(requests.clicked_N)).astype(np.float32)
    logits[100:] = -1.3
    found = _calibrations(requests, np.arange(len(requests)), logits, {})
    assert found["rare"].slope > 0
    logits[-1] = np.nan
    with pytest.raises(ValueError, match="every rare candidate"):
        _calibrations(requests, np.arange(len(requests)), logits, {})


@pytest.mark.parametrize(("texts", "contexts"), [([0, 1], [[1]]), ([0], [[1], [2]])])
def test_equal_logits_of_different_rows_are_refused(
    texts: list[int], contexts: list[list[int]]
) -> None:
    requests = rare_scenario(10, texts, contexts)
    logits = np.random.default_rng(1).normal(size=len(requests.clicked_N)).astype(np.float32)
    logits[100:] = -1.3
    with pytest.raises(ValueError, match="every rare candidate"):
        _calibrations(requests, np.arange(len(requests)), logits, {})


def test_what_was_interrupted_after_the_clicks_does_not_read_sessions_again(
    clicked_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClickModelConfig(num_epochs=0.3, batch_size=32, learning_rate=3e-3)
    given = {"shape": SHAPE, "max_edges": 50, "seed": 0}
    whole = train_click_model(clicked_run, config, output=tmp_path / "whole", **given)

    def killed(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(training, "fit_click_model", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train_click_model(clicked_run, config, output=tmp_path / "parts", **given)
    torn = tmp_path / "parts/checkpoints/clicks/checkpoint-999"  # killed while it was written
    torn.mkdir()
    for name in ("session_requests", "fit_features"):
        monkeypatch.setattr(training, name, killed)
    assert train_click_model(clicked_run, config, output=tmp_path / "parts", **given) == whole


def test_no_impressions_means_no_click_model(mined_run: Path, tmp_path: Path) -> None:
    reports = train_click_model(
        mined_run, ClickModelConfig(), shape=SHAPE, max_edges=50, seed=0, output=tmp_path / "out"
    )
    assert reports is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("clicked", "word"), [(True, "all"), (False, "none")])
def test_clicks_that_teach_nothing_are_refused(
    clicked_run: Path, tmp_path: Path, clicked: bool, word: str
) -> None:
    run = tmp_path / "run"
    (run / "mined").mkdir(parents=True)
    (run / "tokenizer.json").symlink_to(clicked_run / "tokenizer.json")
    for path in (clicked_run / "mined").iterdir():
        (run / "mined" / path.name).symlink_to(path)
    impressions = run / "mined/impressions.parquet"
    table = pq.read_table(impressions)
    column = table.column_names.index("clicked")
    impressions.unlink()
    table = table.set_column(column, "clicked", pa.array([clicked] * table.num_rows))
    pq.write_table(table, impressions)
    with pytest.raises(ValueError, match=f"{word} of the 12000 shown impressions"):
        train_click_model(
            run, ClickModelConfig(), shape=SHAPE, max_edges=50, seed=0, output=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [0.25, float("nan")])
def test_model_that_says_one_thing_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="learned nothing"):
        check_logits("suggestion", np.full(10, value, np.float32))
