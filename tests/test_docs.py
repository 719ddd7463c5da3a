"""The pages for those who run the system name every setting, with its default, and every error."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from engine.config import Config
from queryrec.v1.error_reason_pb2 import ErrorReason
from queryrec.v1.stage_pb2 import OmissionKind, OmissionReason
from train.config import TrainConfig
from train.pipeline import stages_of
from train.settings import ScenarioConfig

DOCS = Path(__file__).parent.parent / "docs"


def settings_of(config: object) -> dict[str, str]:
    """Returns "section.field" -> its default as TOML writes it."""
    found: dict[str, str] = {}
    for section, content in msgspec.to_builtins(config).items():
        if isinstance(content, dict):
            found |= {f"{section}.{name}": written(value) for name, value in content.items()}
        elif section != "scenarios":
            found[section] = written(content)
    return found


def scenario_settings() -> dict[str, str]:
    fields = msgspec.structs.fields(ScenarioConfig)
    return {f"scenarios.{f.name}": "required" if f.required else written(f.default) for f in fields}


def written(value: object) -> str:
    return f"`{json.dumps(value, separators=(',', ':'))}`"


def documented(page: str) -> dict[str, str]:
    """Returns setting -> default as the tables headed "setting" have them."""
    found: dict[str, str] = {}
    is_setting = False
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            is_setting = False
        elif cells[0] == "setting":
            is_setting = True
        elif is_setting and "---" not in line:
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1])
    return found


def test_serving_names_every_setting_of_the_engine_and_its_default() -> None:
    assert documented("serving.md") == settings_of(Config())


def test_training_names_every_setting_of_training_and_its_default() -> None:
    assert documented("training.md") == settings_of(TrainConfig()) | scenario_settings()


def test_serving_names_every_error_reason_and_no_other() -> None:
    text = (DOCS / "serving.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bERROR_REASON_\w+", text))
    assert named == set(ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(OmissionKind.keys(), "OMISSION_KIND_"), (OmissionReason.keys(), "OMISSION_REASON_")],
)
def test_serving_explains_every_kind_and_reason_of_an_omission(
    names: list[str], prefix: str
) -> None:
    text = (DOCS / "serving.md").read_text(encoding="utf-8")
    short = {name.removeprefix(prefix).lower() for name in names} - {"unspecified"}
    assert not {name for name in short if f"`{name}`" not in text}


def test_training_names_every_stage() -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    stages = stages_of(TrainConfig(), Path("runs/none"), print)
    missing = [s.name for s in stages if f"| `{s.name}` | `{s.output}" not in text]
    assert not missing
