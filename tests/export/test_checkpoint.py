"""What is read of a run directory."""

import json
from pathlib import Path

import pytest

from export.checkpoint import Run
from export.sample import write_sample_run


@pytest.mark.parametrize("file", ["calibration.json", "unknown_calibration.json"])
def test_how_positions_are_seen_counts_once(tmp_path: Path, file: str) -> None:
    run = tmp_path / "run"
    write_sample_run(run)
    mined = {s.name: s.position_ctr for s in Run(run).scenarios}
    directory = run / "click_model"
    calibration = json.loads((directory / "calibration.json").read_text())
    calibration["completion"] = calibration["clarification"] = [0.9, -0.4]
    (directory / file).write_text(json.dumps(calibration))
    (directory / "position.json").write_text(json.dumps({"completion": [1.0, 0.7, 0.6]}))
    assert {s.name: s.position_ctr for s in Run(run).scenarios} == {
        "suggestion": mined["suggestion"],  # no held-out panels of it: nothing was calibrated
        "completion": [1.0, 0.7, 0.6],
        "clarification": [1.0],  # calibrated as if all places were seen alike
    }
