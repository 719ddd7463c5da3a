"""The commands that judge a bundle: what is wrong is told before the work, by its option."""

import resource
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from train.cli import app
from train.results import results_in, write_results


def called(command: str, **options: Path) -> Result:
    given = [text for name, path in options.items() for text in (f"--{name}", str(path))]
    return CliRunner().invoke(app, [command, *given])


def assert_refused(result: Result, told: str) -> None:
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


@pytest.fixture
def given(tmp_path: Path, tiny_bundle: Path) -> dict[str, Path]:
    (tmp_path / "run").mkdir()
    return {"run": tmp_path / "run", "bundle": tiny_bundle, "out": tmp_path / "results/out"}


@pytest.mark.parametrize("command", ["evaluate", "report", "replay"])
def test_a_directory_that_cannot_be_written_is_told_first(
    command: str, given: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/out"):
        assert_refused(called(command, **given | {"out": out}), f"--out {out}: cannot be written (")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(("evaluate", o) for o in ("run", "bundle", "heldout", "web", "sessions", "minilm")),
        *(("report", o) for o in ("run", "heldout", "second-world", "closed-loop")),
        *(("replay", o) for o in ("run", "bundle", "judge")),
    ],
)
def test_what_is_not_there_is_told_by_its_option(
    command: str, option: str, given: dict[str, Path], tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    result = called(command, **given | {option: nowhere})
    assert_refused(result, f"--{option} {nowhere}: there is no such ")
    assert not (tmp_path / "results").exists()


def test_a_second_world_that_is_none_is_told_before_the_work(given: dict[str, Path]) -> None:
    result = called("report", **given | {"second-world": given["run"]})
    assert_refused(result, f"--second-world {given['run']}: there is no world.json in it; name")


def test_queries_that_are_found_in_the_repository_alone_are_asked_for_elsewhere(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(
        called("evaluate", **given),
        "--heldout examples/data/heldout.txt.gz: there is no such file; give queries that the log "
        "lacks",
    )


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"--out .*cannot be written"), results_in(tmp_path):
            pytest.fail("the work began")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]


def test_directories_that_are_made_for_nothing_go_again(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(KeyError), results_in(tmp_path / "kept/a/b"):
        raise KeyError
    assert not [*(tmp_path / "kept").iterdir()]


def test_what_is_in_the_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "prompted.json").touch()
    with pytest.raises(KeyError), results_in(tmp_path):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["prompted.json"]


def test_a_file_that_cannot_be_written_in_the_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "eval.json").mkdir()
    with pytest.raises(ValueError, match=r"--out .*cannot be written \(Is a directory\)"):
        write_results(tmp_path, {"eval.json": "text"})
