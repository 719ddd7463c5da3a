"""A bundle id names one release: what changes answers changes the id."""

import json
import shutil
from pathlib import Path

import pytest

from export.bundle import export_bundle
from export.sample import write_sample_run


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("identity") / "run"
    write_sample_run(directory)
    for part in ("encoder", "click_model", "index"):
        shutil.rmtree(directory / part)
    return directory


def test_the_same_run_gives_the_same_id(small_run, tmp_path):
    first = export_bundle(small_run, tmp_path / "first", num_parity_requests=3)
    again = export_bundle(small_run, tmp_path / "again", num_parity_requests=3)
    assert first.bundle_id == again.bundle_id


def test_other_scenario_settings_give_another_id(small_run, tmp_path):
    before = export_bundle(small_run, tmp_path / "before", num_parity_requests=3)
    run = shutil.copytree(small_run, tmp_path / "run")
    path = run / "mined/scenarios.json"
    scenarios = json.loads(path.read_text())
    scenarios[0]["position_ctr"] = [1.0, 0.1]
    path.write_text(json.dumps(scenarios))
    after = export_bundle(run, tmp_path / "after", num_parity_requests=3)
    assert after.bundle_id != before.bundle_id
