from pathlib import Path

import pytest

from train import pipeline
from train.config import read_config
from train.pipeline import stages_of


def mined_with(searches: str, run: Path) -> object:
    config = run / "config.toml"
    config.write_text(f'logs.searches = "{searches}"\n')
    stages = {stage.name: stage for stage in stages_of(read_config(config), run, print)}
    return stages["mine"].settings


@pytest.mark.parametrize("place", ["logs/**", "logs/**/*.parquet", "logs/*/*/*.parquet"])
def test_files_below_a_glob_are_remembered_and_those_of_links_too(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "volume/01").mkdir(parents=True)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/2026").symlink_to(tmp_path / "volume")
    below = tmp_path / "volume/01/a.parquet"
    below.write_text("one")
    before = mined_with(str(tmp_path / place), tmp_path)
    assert mined_with(str(tmp_path / place), tmp_path) == before
    below.write_text("another")
    assert mined_with(str(tmp_path / place), tmp_path) != before


def test_other_rules_mine_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mined_with("logs", tmp_path)
    monkeypatch.setattr(pipeline, "RULES_VERSION", pipeline.RULES_VERSION + 1)
    assert mined_with("logs", tmp_path) != before
