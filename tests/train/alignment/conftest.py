"""A hand-made run whose generator and click model are trained: the second word decides clicks."""

import shutil
from pathlib import Path

import pytest

from train.clicks.training import train_click_model
from train.config import ClickModelConfig, GeneratorConfig
from train.generation.generator import train_generator
from train.models.backbone import shapes_of

SHAPES = shapes_of("tiny")


@pytest.fixture(scope="session")
def trained_run(clicked_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with generator (slots) and click model; tests must not change it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(clicked_run, run)
    generator = GeneratorConfig(num_epochs=3, batch_size=32, learning_rate=5e-3)
    train_generator(run, generator, shape=SHAPES.generator, seed=0, output=_made(run / "generator"))
    click_model = ClickModelConfig(
        num_epochs=2, batch_size=32, learning_rate=5e-3, session_share=0.0
    )
    reports = train_click_model(
        run,
        click_model,
        shape=SHAPES.click_model,
        max_edges=32,
        seed=0,
        output=_made(run / "click_model"),
    )
    assert reports is not None
    assert reports["all"].model.auc > 0.65, "the tests need a click model that has learnt something"
    return run


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
