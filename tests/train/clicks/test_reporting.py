"""What a training of the click model says, and to whom."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.clicks.data import read_requests
from train.clicks.fitting import fit_click_model, half
from train.clicks.model import load_click_model
from train.clicks.reporting import ClickReport, click_reports
from train.clicks.scoring import click_logits
from train.clicks.training import train_click_model
from train.models.backbone import shapes_of
from train.settings import ClickModelConfig


def test_a_training_says_all_to_who_asked_for_it(
    clicked_run: Path, mined_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ClickModelConfig(num_epochs=0.5, batch_size=32, learning_rate=5e-3, max_requests=1000)
    given: dict[str, Any] = {
        "shape": shapes_of("tiny").click_model,
        "max_edges": 32,
        "seed": 0,
        "output": tmp_path,
    }
    lines: list[str] = []
    reports = train_click_model(clicked_run, config, **given, report=lines.append)
    assert reports is not None
    assert lines[0].startswith("click_model.max_requests is 1000: so many of 3000 requests")
    said = [line for line in lines if line.startswith("click model, ")]
    assert said == [report.describe(name) for name, report in reports.items()]
    lines.clear()
    assert train_click_model(mined_run, config, **given, report=lines.append) is None
    assert lines == ["no impressions were mined: no click model"]
    assert capsys.readouterr().out == ""


def test_what_is_fitted_to_held_out_clicks_is_not_measured_on_them(trained_run: Path) -> None:
    """Where the halves differ, what fits both on average fits neither by the other."""
    requests = read_requests(trained_run, max_edges=32)
    assert requests is not None
    model = load_click_model(trained_run / "click_model")
    train, valid = (np.flatnonzero(requests.is_valid_R == is_valid) for is_valid in (False, True))
    logits = click_logits(model, requests, valid)
    half_N = np.zeros(len(requests.request_N), np.int64)
    half_N[requests.rows(valid)] = half(requests, valid)
    assert 0.4 < half_N[requests.rows(valid)].mean() < 0.6

    def measured(clicked_N: np.ndarray) -> ClickReport:
        changed = replace(requests, clicked_N=clicked_N)
        fit = fit_click_model(model, changed, logits, None, hidden_share=0.3, seed=0)
        return click_reports(changed, train, valid, logits, fit)["suggestion"]

    as_it_was = measured(requests.clicked_N)
    assert as_it_was.model.relative_ece < 0.3
    half_clicked = measured(requests.clicked_N & (half_N == 0))
    assert half_clicked.model.relative_ece > 1
    assert half_clicked.click_rate == pytest.approx(as_it_was.click_rate / 2, rel=0.2)
    # Two orders, one of each half, are not taken for one.
    assert half_clicked.model.auc > 0.7
