"""A run's config.toml: the settings that it was made with, which people change and give again.

Knows nothing of what settings mean.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from train.config import TrainConfig, read_config, to_toml
from train.stages import is_first_process

_NUM_NAMED = 3  # settings that differ


def check_settings(
    run: Path, settings: TrainConfig, *, config: Path | None, size: str | None, has_logs: bool
) -> None:
    """Checks that a command does not change a run's settings for want of being given them.

    A file that was given has all settings, so they may differ from the run's, unless somebody
    edited those: what was edited would be lost. With another size, many defaults differ, and only
    what a run has beside the defaults of its own must not be lost.

    Args:
        run: run directory.
        settings: of the command.
        config: file that was given.
        size: that was given.
        has_logs: whether logs were given.

    Raises:
        ValueError: saying what differs and how to go on.
    """
    path = run / "config.toml"
    if not path.is_file() or (config is not None and path.samefile(config)):
        return
    was_edited = _was_edited(run)
    if config is not None and not was_edited:
        return
    try:
        kept = read_config(path)
    except ValueError as error:
        if was_edited:
            raise ValueError(f"{error}; it was edited: mend or remove it") from None
        return  # an older release wrote it
    differing = _differing(kept, settings)
    if not was_edited and size is not None and size != kept.size:
        own = _differing(kept, read_config(None, size=kept.size))
        differing = {k: v for k, v in differing.items() if k in own}
    if not was_edited and has_logs:
        differing = {k: v for k, v in differing.items() if not k.startswith("logs.")}
    if not differing:
        return
    named = [f"{k} {_shown(old)}, here {_shown(new)}" for k, (old, new) in differing.items()]
    more = f"; {len(named) - _NUM_NAMED} more" if len(named) > _NUM_NAMED else ""
    what = "was edited and has" if was_edited else "has"
    beside = " beside --logs" if has_logs else ""
    raise ValueError(
        f"{path} {what} other settings ({'; '.join(named[:_NUM_NAMED])}{more}): give "
        f"--config {path}{beside}, or remove it to go on without them"
    )


def write_settings(run: Path, settings: TrainConfig) -> None:
    """Writes the settings, unless they are what is written already, in whichever words.

    Raises:
        OSError: the run directory cannot be written.
    """
    if not is_first_process():
        return
    path, copy = run / "config.toml", _written(run)
    text = to_toml(settings)
    if not _is(path, settings):
        copy.unlink(missing_ok=True)  # a kill leaves none rather than one that differs
        _write(path, text)
        _write(copy, text)
    elif not copy.is_file():
        _write(copy, text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)


def _is(path: Path, settings: TrainConfig) -> bool:
    try:
        return read_config(path) == settings
    except ValueError:  # none yet, or not ours
        return False


def _written(run: Path) -> Path:
    """Returns where a copy of what was written last is."""
    return run / ".stages/config.toml"


def _was_edited(run: Path) -> bool:
    """Returns whether config.toml differs from what was written; not known of older runs."""
    written = _written(run)
    return written.is_file() and written.read_bytes() != (run / "config.toml").read_bytes()


def _differing(before: TrainConfig, after: TrainConfig) -> dict[str, tuple[object, object]]:
    """Returns the settings that differ, by name: before and after."""
    old, new = _flat(before), _flat(after)
    return {k: (old[k], new[k]) for k in old if old[k] != new[k]}


def _flat(config: TrainConfig) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in msgspec.to_builtins(config).items():
        section: dict[str, Any] = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{k}": v for k, v in section.items()} if section else {name: value}
    return flat


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else "..."
