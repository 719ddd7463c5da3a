from collections.abc import Callable
from pathlib import Path

import pytest

from train.stages import Stage, StageRunner, check_whole, scratch_of


class Interrupted(Exception):
    """Stands for a kill at any moment."""


def stage(name: str, make: Callable[[Path], str], *needs: str, settings: object = None) -> Stage:
    return Stage(name=name, output=name, needs=needs, settings=settings, make=make)


def writer(calls: list[str], text: str = "done") -> Callable[[Path], str]:
    def make(out: Path) -> str:
        calls.append(text)
        (out / "file").write_text(text)
        return text

    return make


def test_a_finished_stage_is_skipped_and_remembers_its_summary(tmp_path: Path) -> None:
    calls: list[str] = []
    runner = StageRunner(tmp_path / "run", [stage("a", writer(calls))])
    assert not runner.run("a").was_skipped
    outcome = StageRunner(tmp_path / "run", [stage("a", writer(calls))]).run("a")
    assert outcome.was_skipped
    assert outcome.summary == "done"
    assert calls == ["done"]


def test_changed_settings_and_force_run_a_stage_again(tmp_path: Path) -> None:
    calls: list[str] = []
    StageRunner(tmp_path, [stage("a", writer(calls), settings=1)]).run("a")
    changed = StageRunner(tmp_path, [stage("a", writer(calls, "new"), settings=2)])
    assert not changed.is_done("a")
    changed.run("a")
    assert (tmp_path / "a/file").read_text() == "new"
    assert not changed.run("a", force=True).was_skipped
    assert calls == ["done", "new", "new"]


def test_a_stage_runs_again_after_what_it_needs_ran_again(tmp_path: Path) -> None:
    runner = StageRunner(tmp_path, [stage("a", writer([])), stage("b", writer([]), "a")])
    runner.run("a")
    runner.run("b")
    assert runner.is_done("b")
    runner.run("a", force=True)
    assert not runner.is_done("b")


def test_what_a_stage_builds_on_is_looked_at_down_to_the_first(tmp_path: Path) -> None:
    def runner(settings: int) -> StageRunner:
        first = stage("a", writer([]), settings=settings)
        return StageRunner(
            tmp_path, [first, stage("b", writer([]), "a"), stage("c", writer([]), "b")]
        )

    for name in ("a", "b", "c"):
        runner(1).run(name)
    changed = runner(2)
    assert not any(changed.is_done(name) for name in ("a", "b", "c"))
    with pytest.raises(
        ValueError, match="stage c needs stage a, which was run with other settings"
    ):
        changed.run("c")
    changed.run("a")
    with pytest.raises(ValueError, match="stage c needs stage b"):
        changed.run("c")
    changed.run("b")
    assert not changed.run("c").was_skipped


def test_a_stage_refuses_to_run_before_what_it_needs(tmp_path: Path) -> None:
    runner = StageRunner(tmp_path / "run", [stage("a", writer([])), stage("b", writer([]), "a")])
    with pytest.raises(ValueError, match="stage b needs stage a, which has not run"):
        runner.run("b")
    assert not (tmp_path / "run").exists()


def test_an_interrupted_stage_looks_unfinished_and_finds_what_it_left(tmp_path: Path) -> None:
    found: list[bool] = []

    def make(out: Path) -> str:
        found.append((out / "checkpoints/half").exists())
        if not found[-1]:
            (out / "checkpoints").mkdir()
            (out / "checkpoints/half").touch()
            raise Interrupted
        (out / "file").touch()
        return ""

    runner = StageRunner(tmp_path, [stage("a", make)])
    with pytest.raises(Interrupted):
        runner.run("a")
    assert not (tmp_path / "a").exists()
    assert not runner.is_done("a")
    runner.run("a")
    assert found == [False, True]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"]


def test_an_error_keeps_what_was_learnt_for_the_same_command_alone(tmp_path: Path) -> None:
    found: list[bool] = []

    def make(out: Path) -> str:
        found.append((out / "checkpoints/checkpoint-500").exists())
        (out / "checkpoints/checkpoint-500").mkdir(parents=True, exist_ok=True)
        if len(found) == 1:
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "a file that was changed meanwhile")
        (out / "file").touch()
        return ""

    with pytest.raises(ValueError, match="changed meanwhile"):
        StageRunner(tmp_path, [stage("a", make, settings=1)]).run("a")
    StageRunner(tmp_path, [stage("a", make, settings=1)]).run("a")
    assert found == [False, True]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"]
    found.clear()
    with pytest.raises(ValueError, match="changed meanwhile"):
        StageRunner(tmp_path, [stage("a", make, settings=2)]).run("a")
    StageRunner(tmp_path, [stage("a", make, settings=3)]).run("a")
    assert found == [False, False]


def test_leftovers_of_other_settings_are_not_used(tmp_path: Path) -> None:
    def fail(out: Path) -> str:
        (out / "stale").touch()
        raise Interrupted

    with pytest.raises(Interrupted):
        StageRunner(tmp_path, [stage("a", fail, settings=1)]).run("a")
    StageRunner(tmp_path, [stage("a", writer([]), settings=2)]).run("a")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"]


def test_an_interrupted_rerun_keeps_the_old_result(tmp_path: Path) -> None:
    def fail(out: Path) -> str:
        raise Interrupted

    StageRunner(tmp_path, [stage("a", writer([]), settings=1)]).run("a")
    with pytest.raises(Interrupted):
        StageRunner(tmp_path, [stage("a", fail, settings=2)]).run("a")
    assert (tmp_path / "a/file").read_text() == "done"


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    def refuse(out: Path) -> str:
        (out / "file").touch()
        raise ValueError("column time is missing")

    with pytest.raises(ValueError, match="column time"):
        StageRunner(tmp_path / "run", [stage("a", refuse)]).run("a")
    assert not (tmp_path / "run").exists()


def test_a_stage_with_nothing_to_make_leaves_no_output_but_is_done(tmp_path: Path) -> None:
    runner = StageRunner(tmp_path, [stage("a", lambda out: "nothing to do")])
    runner.run("a")
    assert runner.is_done("a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("is_file", [True, False])
def test_a_stage_whose_output_is_gone_is_not_done(tmp_path: Path, is_file: bool) -> None:
    def make(out: Path) -> str:
        (out if is_file else out / "file").write_text("made")
        return "made"

    first = Stage(name="first", output="first", needs=(), settings=0, make=make, is_file=is_file)
    second = Stage(name="second", output="second", needs=("first",), settings=0, make=make)
    runner = StageRunner(tmp_path, [first, second])
    runner.run("first")
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="inputs, or lost in"):
        runner.check("second")
    assert not runner.run("first").was_skipped
    assert (tmp_path / "first").exists()


def test_processes_of_one_torchrun_share_what_is_shared_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(out: Path) -> str:
        made.append(out)
        return "made"

    alone = Stage(name="alone", output="alone", needs=(), settings=0, make=make)
    shared = Stage(name="shared", output="shared", needs=(), settings=0, make=make, is_shared=True)
    runner = StageRunner(tmp_path, [alone, shared])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="start it without torchrun, which is for shared"):
        runner.run("alone")
    assert not runner.run("shared").was_skipped
    assert not runner.is_done("shared"), "the first process keeps records"
    monkeypatch.setenv("RANK", "0")
    runner.run("shared")
    assert made == [tmp_path / "shared.partial"] * 2
    monkeypatch.delenv("WORLD_SIZE")
    runner.run("alone")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert runner.run("alone").was_skipped


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    second = StageRunner(tmp_path, [stage("a", writer([]))])

    def run_second(out: Path) -> str:
        (out / "mine").touch()
        with pytest.raises(ValueError, match="another queryrec-train"):
            second.run("a")
        return ""

    StageRunner(tmp_path, [stage("a", run_second)]).run("a")
    assert (tmp_path / "a/mine").exists()


def test_what_a_killed_stage_kept_meanwhile_goes_with_the_next_one(tmp_path: Path) -> None:
    stages = [stage("a", writer([])), stage("b", writer([]))]
    scratch = scratch_of(tmp_path / "a.partial")
    scratch.mkdir()
    (scratch / "raw.parquet").touch()
    StageRunner(tmp_path, stages).run("b")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".stages", "b"]


def test_a_file_is_an_output_too(tmp_path: Path) -> None:
    def make(out: Path) -> str:
        out.write_text("x")
        return ""

    a = Stage(name="a", output="a.json", needs=(), settings=1, make=make, is_file=True)
    StageRunner(tmp_path, [a]).run("a")
    assert (tmp_path / "a.json").read_text() == "x"


def test_a_run_is_whole_while_all_that_is_there_was_made_from_one_another(tmp_path: Path) -> None:
    def interrupted(out: Path) -> str:
        raise KeyboardInterrupt

    def stages(setting: int, make: Callable[[Path], str] | None = None) -> StageRunner:
        last = stage("last", make or writer([]), "second")
        first = stage("first", writer([]), settings=setting)
        return StageRunner(tmp_path, [first, stage("second", writer([]), "first"), last])

    stages(1).run("first")
    check_whole(tmp_path)
    stages(1).run("second")
    with pytest.raises(KeyboardInterrupt):
        stages(1, interrupted).run("last")
    with pytest.raises(ValueError, match="stage last was begun and not finished"):
        check_whole(tmp_path)
    stages(1).run("last")
    check_whole(tmp_path)
    stages(2).run("first")
    with pytest.raises(ValueError, match="second was made from what stage first has replaced"):
        check_whole(tmp_path)
    stages(2).run("second")
    with pytest.raises(ValueError, match="last was made from what stage second has replaced"):
        check_whole(tmp_path)
    stages(2).run("last")
    check_whole(tmp_path)
