"""A run's config.toml: it is not overwritten with what nobody asked for."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from train.cli import app
from train.config import read_config
from train.run_settings import check_settings, write_settings


def written(run: Path, *, edited: str = "", more: str = "") -> Path:
    """Writes a run's settings as a command does, then edits them."""
    own = run.parent / "own.toml"
    own.write_text(f'size = "tiny"\n{more}')
    write_settings(run, read_config(own))
    path = run / "config.toml"
    if edited:
        before, after = edited.split("->")
        path.write_text(path.read_text().replace(before, after) + "# mine\n")
    return path


def check(run: Path, config: Path | None = None, size: str | None = None, logs: str = "") -> None:
    settings = read_config(config, size=size, logs=[Path(logs)] if logs else ())
    check_settings(run, settings, config=config, size=size, has_logs=bool(logs))


EDITED = "min_users = 5->min_users = 9"


def test_what_somebody_edited_is_not_overwritten(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other.toml"
    path = written(run, edited=EDITED)
    other.write_text('size = "tiny"\n')
    for config, size in ((None, "tiny"), (other, None), (other, "demo")):
        with pytest.raises(ValueError, match="was edited and has other settings") as told:
            check(run, config, size)
        assert "mine.min_users 9, here 5" in str(told.value)
        assert f"--config {path}" in str(told.value)
    check(run, path)
    check(run, path, "demo")
    path.unlink()
    check(run, other)


def test_words_of_ones_own_stay_where_the_settings_are_the_same(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = written(run, edited=EDITED)
    text = path.read_text()
    write_settings(run, read_config(path))
    assert path.read_text() == text
    write_settings(run, read_config(path, size="demo"))
    assert read_config(path).size == "demo"
    assert read_config(path).mine.min_users == 9
    check(run, tmp_path / "own.toml")  # nobody edited what was written last


def test_an_edited_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    written(tmp_path / "run", edited="min_users = 5->min_users = five")
    with pytest.raises(ValueError, match=r"config\.toml: not TOML: .*edited: mend or remove it"):
        check(tmp_path / "run", size="tiny")


@pytest.mark.parametrize(
    ("size", "more", "named"),
    [(None, "", 'size "tiny", here "small"'), ("tiny", "seed = 7\n", "seed 7, here 0")],
)
def test_settings_of_a_run_are_not_changed_for_want_of_being_given(
    size: str | None, more: str, named: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "run", more=more)
    with pytest.raises(ValueError, match="has other settings") as told:
        check(tmp_path / "run", size=size)
    assert named in str(told.value)
    assert f"--config {path}" in str(told.value)


def test_what_is_given_may_differ(simulated_logs: Any, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other.toml"
    written(run)
    other.write_text("seed = 3\n")
    check(run, other)
    check(run, size="demo")
    check(run, size="tiny")
    check(run, size="tiny", logs=str(Path(simulated_logs.searches).parent))


def test_another_size_does_not_drop_what_else_a_run_has(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = written(run, more='seed = 7\n[mine]\nmin_users = 20\nunsafe_words = "bad.txt"\n')
    with pytest.raises(ValueError, match="has other settings") as told:
        check(run, size="demo")
    for named in ("seed 7, here 0", "mine.min_users 20, here 5", 'unsafe_words "bad.txt", here ""'):
        assert named in str(told.value)
    assert "max_" not in str(told.value)  # defaults of a size
    check(run, path, "demo")


def test_another_size_may_come_with_other_logs(simulated_logs: Any, tmp_path: Path) -> None:
    logs = str(Path(simulated_logs.searches).parent)
    written(tmp_path / "run", more='logs.searches = "elsewhere"\n')
    check(tmp_path / "run", size="demo", logs=logs)


def test_logs_given_again_are_not_lost_by_what_is_advised(
    simulated_logs: Any, tmp_path: Path
) -> None:
    run, logs = tmp_path / "run", str(Path(simulated_logs.searches).parent)
    path = written(run, edited=EDITED)
    with pytest.raises(ValueError, match="was edited") as told:
        check(run, size="tiny", logs=logs)
    assert f"give --config {path} beside --logs, or remove it" in str(told.value)
    check(run, path, logs=logs)


def test_a_kill_between_two_writes_does_not_make_a_file_an_edited_one(tmp_path: Path) -> None:
    run, own = tmp_path / "run", tmp_path / "own.toml"
    path = written(run)
    copy = run / ".stages/config.toml"
    (blocked := copy.with_name("config.toml.partial")).mkdir()  # the copy cannot be written
    own.write_text('size = "tiny"\nseed = 1\n')
    with pytest.raises(IsADirectoryError):
        write_settings(run, read_config(own))
    assert read_config(path).seed == 1
    blocked.rmdir()
    own.write_text('size = "tiny"\nseed = 2\n')
    check(run, own)
    write_settings(run, read_config(path))  # the same settings, which are remembered
    path.write_text(path.read_text().replace("seed = 1", "seed = 3"))
    with pytest.raises(ValueError, match="was edited and has other settings"):
        check(run, own)


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_command_refuses_before_it_does_anything(simulated_logs: Any, tmp_path: Path) -> None:
    run, logs = tmp_path / "run", Path(simulated_logs.searches).parent
    command = ("mine", "--logs", logs, "--run", run)
    assert called(*command, "--size", "tiny").exit_code == 0
    assert 'size "tiny", here "small"' in called(*command).stderr
    path = run / "config.toml"
    path.write_text(path.read_text().replace("max_tokens = 64", "max_tokens = 48"))
    for more in ([], ["--force"]):
        refused = called(*command, "--size", "tiny", *more)
        assert refused.exit_code == 2
        assert "prompt.max_tokens 48, here 64" in refused.stderr
        assert not refused.stdout
    again = called("mine", "--config", path, "--run", run)
    assert again.exit_code == 0
    assert "skipped" not in again.stdout
    assert "max_tokens = 48" in path.read_text()


def test_a_run_goes_on_with_its_own_settings(simulated_logs: Any, tmp_path: Path) -> None:
    run, own = tmp_path / "run", tmp_path / "own.toml"
    logs = Path(simulated_logs.searches).parent
    own.write_text(f'size = "tiny"\nlogs.searches = "{logs}/searches.parquet"\n')
    first = called("mine", "--config", own, "--run", run)
    assert first.exit_code == 0
    assert "settings: " not in first.stdout
    path = run / "config.toml"
    text = path.read_text().replace("min_users = 5", "min_users = 9") + "# mine\n"
    path.write_text(text)
    again = called("mine", "--run", run)
    assert again.exit_code == 0, again.output
    assert f"settings: {path}\n" in again.stdout
    assert "min_users = 9" in again.stdout
    assert "skipped" not in again.stdout
    assert path.read_text() == text
    assert "skipped" in called("mine", "--run", run).stdout


def test_settings_of_a_run_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = written(tmp_path / "run", edited="min_users = 5->min_users = five")
    refused = called("mine", "--run", tmp_path / "run")
    assert refused.exit_code == 2
    assert f"{path}: not TOML" in refused.stderr
