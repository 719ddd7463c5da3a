"""What a dry run refuses. One that succeeds: tests/e2e/test_process."""

import dataclasses
from pathlib import Path

import msgspec
import pytest

from engine.answering.pipeline import Pipeline
from engine.config import Config, FeedbackConfig, ModelsConfig
from engine.execution.bundle import load_bundle
from engine.serving import dryrun

CONFIG = Config(models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2))


class Broken:
    """A model that fails."""

    def run(self, *arguments: object) -> object:
        raise RuntimeError("broken")


async def test_an_answer_without_what_a_model_should_have_made_is_refused(
    tiny_bundle, monkeypatch, capsys
):
    async def load(directory: Path, runtime, config, clock, report) -> Pipeline:
        bundle = dataclasses.replace(load_bundle(directory, runtime), click_model=Broken())
        return Pipeline(bundle, runtime, config, clock)

    monkeypatch.setattr(dryrun, "load_pipeline", load)
    with pytest.raises(ValueError, match="left out score skipped failure, with 10 s to answer"):
        await dryrun.dry_run(tiny_bundle, CONFIG)
    assert "left out: score skipped failure" in capsys.readouterr().out


async def test_keys_that_cannot_sign_a_token_are_refused(tiny_bundle, tmp_path):
    keys = FeedbackConfig(keys_file=str(tmp_path / "nosuch"))
    with pytest.raises(ValueError, match="signing keys cannot be read"):
        await dryrun.dry_run(tiny_bundle, msgspec.structs.replace(CONFIG, feedback=keys))
