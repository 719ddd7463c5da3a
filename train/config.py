"""The training configuration: one TOML file, read once, all errors reported together.

Priority: command-line flag > file > the size's defaults > the others of `train.settings`. Knows
nothing of how stages use it.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from train.mining.places import files_of, missing
from train.settings import (
    SIZE_DEFAULTS,
    AlignmentConfig,
    ClickModelConfig,
    EncoderConfig,
    GeneratorConfig,
    IndexConfig,
    LogsConfig,
    MineConfig,
    Places,
    PromptConfig,
    ScenarioConfig,
    Section,
    SimulateConfig,
    Size,
    default_scenarios,
    places_of,
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
        ValueError: the file cannot be read or is wrong; the message lists every wrong setting.
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
        wrong = _mistakes(name, value, types[name])
        errors += wrong
        if not wrong:
            sound[name] = value
    for name, values in SIZE_DEFAULTS.get(str(sound.get("size")), {}).items():
        section = sound.get(name, {})
        assert isinstance(section, dict), "its type was checked"
        sound[name] = {**values, **section}
    config: TrainConfig | None = None
    try:
        config = msgspec.convert(sound, TrainConfig)
    except msgspec.ValidationError as error:
        errors.append(str(error))
    if errors or config is None:
        raise ValueError(place + "; ".join(errors))
    return config


def _mistakes(name: str, value: Any, kind: Any) -> list[str]:
    """Returns every mistake in a setting or a section."""
    if name == "scenarios" and isinstance(value, list):
        parts = [(f"{name}[{i}]", part) for i, part in enumerate(value)]
        return [e for place, part in parts for e in _mistakes(place, part, ScenarioConfig)]
    if get_origin(kind) is Literal:
        return [] if value in (known := get_args(kind)) else [_not_among(name, value, known)]
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if not isinstance(value, dict):
            return [f"{name}: {error}"]
        return _mistakes_in_section(name, value, kind, str(error))
    return []


def _mistakes_in_section(
    name: str, section: dict[str, Any], kind: type[Section], message: str
) -> list[str]:
    """Returns the mistake of the message, and those that it hid: found without its setting."""
    fields = {f.name: f for f in msgspec.structs.fields(kind)}
    wrong = next((k for k in section if re.search(rf"\b{re.escape(k)}\b", message)), None)
    if wrong is None:
        return [f"{name}: {message}"]
    rest = {k: v for k, v in section.items() if k != wrong}
    if wrong not in fields:
        found = f"unknown field {wrong!r}"
    elif get_origin(fields[wrong].type) is Literal:
        found = _not_among(wrong, section[wrong], get_args(fields[wrong].type))
    else:
        found = message
        if fields[wrong].required:  # it would be missed
            return [f"{name}: {found}"]
    return [f"{name}: {found}", *_mistakes(name, rest, kind)]


def _not_among(name: str, value: object, known: Sequence[str]) -> str:
    return f"{name} is {value!r}, must be one of {', '.join(known)}"


def check_places(logs: LogsConfig) -> None:
    """Checks that there is something where the log tables should be.

    Raises:
        ValueError: naming the places where there is nothing.
    """
    tables: dict[str, Places] = {"searches": logs.searches, "impressions": logs.impressions}
    absent = [
        f"logs.{name}: {missing(place)}"
        for name, places in tables.items()
        for place in places_of(places)
        if not files_of(place)
    ]
    if absent:
        raise ValueError("; ".join(absent))


def check_logs_given(run: Path) -> None:
    """Checks that a run was not made from logs, which would have to be given again.

    Raises:
        ValueError: it was.
    """
    path = run / "config.toml"
    try:
        logs = tomllib.loads(path.read_text(encoding="utf-8")).get("logs", {})
    except (OSError, ValueError):  # none yet, or not ours
        return
    if isinstance(logs, dict) and (places := places_of(logs.get("searches", ""))):
        raise ValueError(f"{run} was made from {', '.join(places)}: give --logs or --config {path}")


def _logs_in(directories: Sequence[Path]) -> dict[str, object]:
    """Returns the section logs for directories that hold tables by their usual names."""
    places: dict[str, list[str]] = {}
    for name in (SEARCHES, IMPRESSIONS):
        found = [str(d / name) for d in directories if (d / name).exists()]
        places[name.removesuffix(".parquet")] = found
    for directory in directories:
        if directory.is_file():
            raise ValueError(
                f"--logs {directory}: is a file; give the directory of the tables, or import it "
                f"first (queryrec-train import tsv {directory} --out logs)"
            )
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
