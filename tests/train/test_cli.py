import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from export.checkpoint import Run
from train.cli import app
from train.config import read_config
from train.pipeline import stages_of


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def config_file(
    directory: Path, searches: object, impressions: object = "", more: str = ""
) -> Path:
    path = directory / "config.toml"
    path.write_text(
        f'size = "tiny"\n[logs]\nsearches = "{searches}"\nimpressions = "{impressions}"\n'
        "[mine]\nnum_threads = 1\n"
        '[encoder]\nnum_epochs = 1\n[generator]\nmode = "both"\nnum_epochs = 0.05\n'
        f"[click_model]\nlearning_rate = 5e-3\nsession_share = 0.1\n{more}"
    )
    return path


def assert_refused(result: Result, part: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr


def test_wrong_settings_end_with_one_line_and_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[mine]\nmin_users = 0\n[encoder]\nbatch_sise = 2\n")
    run = tmp_path / "run"
    assert_refused(
        called("mine", "--config", tmp_path / "bad.toml", "--run", run), "min_users is 0"
    )
    assert_refused(called("run", "--config", tmp_path / "no.toml", "--run", run), "no.toml")
    assert_refused(called("run", "--size", "huge", "--run", run), "huge")
    assert not run.exists()


def test_a_wrong_place_of_logs_is_told_in_place_of_the_settings(
    simulated_logs: Any, tmp_path: Path
) -> None:
    config = config_file(tmp_path, simulated_logs.searches, tmp_path / "*/no.parquet")
    result = called("run", "--config", config, "--run", tmp_path / "run")
    assert_refused(result, f"logs.impressions: no file fits {tmp_path}/*/no.parquet")
    assert not result.stdout
    assert not (tmp_path / "run").exists()


def test_a_run_of_real_logs_is_not_gone_on_with_simulated_ones(
    simulated_logs: Any, tmp_path: Path
) -> None:
    config, run = config_file(tmp_path, simulated_logs.searches), tmp_path / "run"
    assert called("mine", "--config", config, "--run", run).exit_code == 0
    kept = (run / "config.toml").read_bytes()
    for stage in ("run", "mine", "simulate"):
        result = called(stage, "--size", "tiny", "--run", run)
        wanted = f"{run} was made from {simulated_logs.searches}: give --logs or --config {run}"
        assert_refused(result, f"{wanted}/config.toml")
        assert not result.stdout
    assert (run / "config.toml").read_bytes() == kept
    assert not (run / "simulated").exists()
    again = called("mine", "--config", run / "config.toml", "--run", run)
    assert "done already, skipped" in again.stdout


def test_simulating_for_want_of_logs_is_said_once(simulated_logs: Any, tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    small.write_text(
        "[simulate]\nnum_queries = 300\nnum_searches = 2000\nnum_users = 200\nnum_requests = 60\n"
    )
    result = called("simulate", "--config", small, "--run", tmp_path / "simulated")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("no logs given: simulating") == 1
    config = config_file(tmp_path, simulated_logs.searches)
    result = called("mine", "--config", config, "--run", tmp_path / "real")
    assert "no logs given" not in result.stdout


@pytest.mark.parametrize("command", ["mine", "evaluate", "replay"])
def test_packages_of_training_that_are_missing_are_told_in_one_line(
    command: str, simulated_logs: Any, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    arguments = {
        "mine": ["--config", config_file(tmp_path, simulated_logs.searches)],
        "evaluate": ["--bundle", tmp_path, "--out", tmp_path / "out"],
        "replay": ["--bundle", tmp_path, "--out", tmp_path / "out"],
    }
    # As after `make demo`, which installs what the engine needs.
    missing = ("ibis", "pandas", "pyarrow", "torch", "transformers")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "from train.cli import app; app()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, command, "--run", tmp_path / "run", *arguments[command]],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert "error: training needs more packages (" in result.stderr
    assert "run `make setup`" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_wrong_table_ends_with_one_line_and_writes_nothing(
    simulated_logs: Any, tmp_path: Path
) -> None:
    pq.write_table(
        pq.read_table(simulated_logs.searches).drop_columns("time"), tmp_path / "s.parquet"
    )
    run = tmp_path / "run"
    result = called("mine", "--config", config_file(tmp_path, tmp_path / "s.parquet"), "--run", run)
    assert_refused(result, "searches misses the columns time")
    assert not run.exists()


def test_a_stage_says_what_must_run_before_it(simulated_logs: Any, tmp_path: Path) -> None:
    config = config_file(tmp_path, simulated_logs.searches)
    for stage, needed in (("sft", "mine"), ("index", "mine"), ("tokenizer", "mine")):
        result = called(stage, "--config", config, "--run", tmp_path / "run")
        assert_refused(result, f"queryrec-train {needed}")
    assert_refused(called("simulate", "--config", config, "--run", tmp_path / "run"), "simulate")
    assert not (tmp_path / "run").exists()


def test_mining_without_impressions_is_enough_for_all_but_the_click_model(
    simulated_logs: Any, tmp_path: Path
) -> None:
    config = config_file(tmp_path, simulated_logs.searches)
    run = tmp_path / "run"
    result = called("mine", "--config", config, "--run", run)
    assert result.exit_code == 0, result.output
    assert "effective configuration" in result.stdout
    assert "memory_limit_mb = 4096" in result.stdout
    again = called("mine", "--config", config, "--run", run)
    assert "done already, skipped" in again.stdout
    forced = called("mine", "--config", config, "--run", run, "--force")
    assert "skipped" not in forced.stdout
    changed = config_file(tmp_path, simulated_logs.searches, more="[prompt]\nmax_tokens = 48\n")
    assert "skipped" not in called("mine", "--config", changed, "--run", run).stdout
    assert "max_tokens = 48" in (run / "config.toml").read_text()


def test_logs_of_two_places_are_mined_together_and_again_when_one_changes(
    simulated_logs: Any, tmp_path: Path
) -> None:
    table = pq.read_table(simulated_logs.searches)
    for name, rows in (("old", table.slice(0, 900)), ("new", table.slice(900))):
        (tmp_path / name).mkdir()
        pq.write_table(rows, tmp_path / name / "searches.parquet")
    both = ("--logs", tmp_path / "old", "--logs", tmp_path / "new", "--run", tmp_path / "run")
    assert called("mine", "--size", "tiny", *both).exit_code == 0
    summary = json.loads((tmp_path / "run/mined/summary.json").read_text())
    assert summary["num_searches"] == table.num_rows
    assert "skipped" in called("mine", "--size", "tiny", *both).stdout
    pq.write_table(table.slice(1000), tmp_path / "new/searches.parquet")
    assert "skipped" not in called("mine", "--size", "tiny", *both).stdout


def test_other_unsafe_words_in_the_same_file_are_mined_for_again(
    simulated_logs: Any, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("nothing of the kind\n")
    config = config_file(tmp_path, simulated_logs.searches)
    named = f'[mine]\nunsafe_words = "{words}"\n'
    config.write_text(config.read_text().replace("[mine]\n", named))
    run = tmp_path / "run"
    assert called("mine", "--config", config, "--run", run).exit_code == 0
    assert "skipped" in called("mine", "--config", config, "--run", run).stdout
    query = pq.read_table(run / "mined/queries.parquet")["text"][0].as_py()
    words.write_text(f"{query}\n")
    assert "skipped" not in called("mine", "--config", config, "--run", run).stdout
    assert query not in pq.read_table(run / "mined/queries.parquet")["text"].to_pylist()


def test_places_with_brackets_and_local_checkpoints_are_told_apart_by_their_files(
    tmp_path: Path,
) -> None:
    place, checkpoint = tmp_path / "logs[1]", tmp_path / "checkpoint"
    for directory in (place, checkpoint):
        directory.mkdir()
    files = [place / "searches.parquet", checkpoint / "model.safetensors"]
    for path in files:
        path.write_text("old")

    def settings() -> dict[str, bytes]:
        config = tmp_path / "config.toml"
        config.write_text(
            f'size = "base"\n[logs]\nsearches = "{files[0]}"\n'
            f'[encoder]\nbase_checkpoint = "{checkpoint}"\n'
            f'[generator]\nbase_checkpoint = "{checkpoint}"\n'
        )
        stages = stages_of(read_config(config), tmp_path / "run", print)
        return {s.name: msgspec.json.encode(s.settings) for s in stages}

    def changed(before: dict[str, bytes]) -> set[str]:
        return {name for name, value in settings().items() if value != before[name]}

    before = settings()
    assert not changed(before)
    files[0].write_text("new and longer")
    assert changed(before) == {"mine"}
    before = settings()
    files[1].write_text("new and longer")
    assert changed(before) == {"tokenizer", "encoder", "sft"}


def test_lists_of_another_length_are_trained_on_anew() -> None:
    def settings(max_edges: int) -> dict[str, bytes]:
        config = read_config(None)
        index = msgspec.structs.replace(config.index, max_edges=max_edges)
        stages = stages_of(msgspec.structs.replace(config, index=index), Path("run"), print)
        return {s.name: msgspec.json.encode(s.settings) for s in stages}

    few, many = settings(8), settings(32)
    assert {n for n in few if few[n] != many[n]} == {"sft", "click", "align", "index"}


def test_a_terminated_command_leaves_no_raw_texts(simulated_logs: Any, tmp_path: Path) -> None:
    config, run, words = (
        config_file(tmp_path, simulated_logs.searches),
        tmp_path / "run",
        tmp_path / "words",
    )
    os.mkfifo(words)  # mining waits until somebody writes to it
    config.write_text(config.read_text().replace("[mine]", f'[mine]\nunsafe_words = "{words}"'))
    command = [sys.executable, "-m", "train", "mine", "--config", config, "--run", run]
    scratch = run / "mined.partial.scratch"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not scratch.exists():
                assert process.poll() is None
                time.sleep(0.01)
            process.terminate()
            _, said = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 130
    assert said == "interrupted; the same command goes on from here\n"
    assert not scratch.exists()
    words.unlink()
    words.write_text("")
    assert called("mine", "--config", config, "--run", run).exit_code == 0


def test_all_stages_run_from_logs_to_checkpoints(simulated_logs: Any, tmp_path: Path) -> None:
    # The hand-made log has few texts: fewer ids than a tiny vocabulary has room for.
    aligned = "[alignment]\nnum_rounds = 1\nnum_prompts = 24\nnum_valid_prompts = 9\nmax_kl = 1e6\n"
    config = config_file(
        tmp_path, simulated_logs.searches, simulated_logs.impressions, more=aligned
    )
    run = tmp_path / "run"
    result = called("run", "--config", config, "--run", run)
    assert result.exit_code == 0, result.output
    for name in (
        "config.toml",
        "mined/queries.parquet",
        "tokenizer.json",
        "encoder/model.safetensors",
        "generator/model.safetensors",
        "click_model/head.safetensors",
        "aligned/model.safetensors",
        "index/index.json",
    ):
        assert (run / name).exists(), name
    assert not list(run.glob("*.partial"))
    again = called("run", "--config", config, "--run", run)
    assert again.stdout.count("done already, skipped") == 7
    assert Run(run).generator_directory == run / "aligned"
    unaligned = config_file(tmp_path, simulated_logs.searches, simulated_logs.impressions)
    result = called("align", "--config", unaligned, "--run", run)
    assert "stays as fine-tuned" in result.stdout
    assert Run(run).generator_directory == run / "generator"


def test_help_names_every_command() -> None:
    result = called("--help")
    for name in (
        "simulate",
        "mine",
        "tokenizer",
        "encoder",
        "sft",
        "click",
        "align",
        "index",
        "run",
        "import",
        "teach",
        "evaluate",
        "report",
    ):
        assert name in result.stdout


@pytest.mark.parametrize("stage", ["mine", "run"])
def test_options_are_few(stage: str) -> None:
    result = called(stage, "--help")
    options = {w for w in result.stdout.split() if w.startswith("--")}
    assert options == {"--config", "--logs", "--run", "--size", "--force", "--help"}
