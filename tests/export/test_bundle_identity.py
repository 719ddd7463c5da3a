"""A bundle id names one release: what changes answers changes the id."""

import json
import shutil
from pathlib import Path

import pytest

from export.bundle import export_bundle
from export.sample import write_sample_run


@pytest.fixture(scope="module")
def run_without_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("identity") / "run"
    write_sample_run(directory)
    for part in ("encoder", "generator", "click_model", "index"):
        shutil.rmtree(directory / part)
    return directory


def test_the_same_run_gives_the_same_id(run_without_models, tmp_path):
    first = export_bundle(run_without_models, tmp_path / "first")
    again = export_bundle(run_without_models, tmp_path / "again")
    assert first.bundle_id == again.bundle_id


def test_other_scenario_settings_give_another_id(run_without_models, tmp_path):
    before = export_bundle(run_without_models, tmp_path / "before").bundle_id
    run = shutil.copytree(run_without_models, tmp_path / "run")
    path = run / "mined/scenarios.json"
    scenarios = json.loads(path.read_text())
    scenarios[0]["position_ctr"] = [1.0, 0.1]
    path.write_text(json.dumps(scenarios))
    assert export_bundle(run, tmp_path / "after").bundle_id != before
