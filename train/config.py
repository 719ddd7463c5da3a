"""The training configuration: one TOML file, read once, all errors reported together.

Priority: command-line flag > file > the defaults of `train.settings`. Knows nothing of how stages
use it.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from train.settings import (
    AlignmentConfig,
    ClickModelConfig,
    EncoderConfig,
    GeneratorConfig,
    IndexConfig,
    LogsConfig,
    MineConfig,
    PromptConfig,
    ScenarioConfig,
    Section,
    SimulateConfig,
    Size,
    default_scenarios,
)

SEARCHES, IMPRESSIONS = "searches.parquet", "impressions.parquet"


class TrainConfig(Section, frozen=True, kw_only=True):
    """Everything `queryrec-train` can be told."""

    size: Size = "small"
    seed: int = 0
    logs: LogsConfig = msgspec.field(default_factory=LogsConfig)
    simulate: SimulateConfig = msgspec.field(default_factory=SimulateConfig)
    mine: MineConfig = msgspec.field(default_factory=MineConfig)
    prompt: PromptConfig = msgspec.field(default_factory=PromptConfig)
    encoder: EncoderConfig = msgspec.field(default_factory=EncoderConfig)
    generator: GeneratorConfig = msgspec.field(default_factory=GeneratorConfig)
    click_model: ClickModelConfig = msgspec.field(default_factory=ClickModelConfig)
    alignment: AlignmentConfig = msgspec.field(default_factory=AlignmentConfig)
    index: IndexConfig = msgspec.field(default_factory=IndexConfig)
    scenarios: list[ScenarioConfig] = msgspec.field(default_factory=default_scenarios)

    def __post_init__(self) -> None:
        """Checks what spans sections."""
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}, must be between 0 and 2147483647")
        if not self.scenarios:
            raise ValueError("scenarios is empty, at least one is needed")
        for name, section in (("encoder", self.encoder), ("generator", self.generator)):
            if section.base_checkpoint and self.size != "base":
                raise ValueError(
                    f"{name}.base_checkpoint is set but size is {self.size}: only size base "
                    "starts from a checkpoint"
                )
        if bool(self.logs.impressions) and not self.logs.searches:
            raise ValueError("logs.impressions is set but logs.searches is not")
        names = [s.name for s in self.scenarios]
        if len(set(names)) != len(names):
            raise ValueError(f"scenarios {names} name one twice")


def read_config(
    path: Path | None, *, size: str | None = None, logs: Sequence[Path] = ()
) -> TrainConfig:
    """Returns the configuration in `path`, or the defaults.

    Args:
        path: TOML file.
        size: in place of the file's.
        logs: directories with searches.parquet, impressions.parquet or both, in place of the
            file's section logs.

    Raises:
        ValueError: the file cannot be read or is wrong; the message lists every wrong section.
    """
    content: dict[str, object] = {}
    if path is not None:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not TOML: {error}") from None
    if size is not None:
        content["size"] = size
    if logs:
        content["logs"] = _logs_in(logs)
    place = f"{path}: " if path is not None else ""
    errors: list[str] = []
    sound: dict[str, object] = {}
    types = {f.name: f.type for f in msgspec.structs.fields(TrainConfig)}
    for name, value in content.items():
        if name not in types:
            errors.append(f"unknown setting {name!r}; known are {', '.join(types)}")
            continue
        try:
            msgspec.convert(value, types[name])
            sound[name] = value
        except msgspec.ValidationError as error:
            errors.append(f"{name}: {error}")
    config: TrainConfig | None = None
    try:
        config = msgspec.convert(sound, TrainConfig)
    except msgspec.ValidationError as error:
        errors.append(str(error))
    if errors or config is None:
        raise ValueError(place + "; ".join(errors))
    return config


def _logs_in(directories: Sequence[Path]) -> dict[str, object]:
    """Returns the section logs for directories that hold tables by their usual names."""
    places: dict[str, list[str]] = {}
    for name in (SEARCHES, IMPRESSIONS):
        found = [str(d / name) for d in directories if (d / name).exists()]
        places[name.removesuffix(".parquet")] = found
    for directory in directories:
        if not any((directory / name).exists() for name in (SEARCHES, IMPRESSIONS)):
            raise ValueError(f"--logs {directory}: holds neither {SEARCHES} nor {IMPRESSIONS}")
    if not places["searches"]:
        raise ValueError(f"--logs: no directory holds {SEARCHES}, which training needs")
    return {k: v[0] if len(v) == 1 else v or "" for k, v in places.items()}


def to_toml(config: TrainConfig) -> str:
    """Returns the configuration as TOML that `read_config` reads back to an equal one."""
    fields = msgspec.to_builtins(config)
    plain = {k: v for k, v in fields.items() if not isinstance(v, dict) and k != "scenarios"}
    blocks = [_assignments(plain)]
    blocks += [f"[{k}]\n{_assignments(v)}" for k, v in fields.items() if isinstance(v, dict)]
    blocks += [f"[[scenarios]]\n{_assignments(s)}" for s in fields["scenarios"]]
    return "\n".join(blocks)


def _assignments(values: dict[str, object]) -> str:
    return "".join(f"{k} = {_literal(v)}\n" for k, v in values.items())


def _literal(value: object) -> str:
    # JSON's strings, numbers, booleans and arrays are TOML's, but for a raw DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
