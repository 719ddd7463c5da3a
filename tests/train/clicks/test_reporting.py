"""What a training of the click model says, and to whom."""

from pathlib import Path
from typing import Any

import pytest

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
