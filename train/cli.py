"""The command `queryrec-train`. Knows nothing of how stages work.

Settings come from `--config FILE` (TOML); `--size` and `--logs` override the file's. Without any of
these, a run goes on with the settings that it was made with (its config.toml). Every stage
is done once and skipped afterwards, unless its settings or its inputs changed, or `--force` is
given. Errors in what the user brought end the command with one line and exit code 2.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from train.adapters import ADAPTERS
from train.config import (
    IMPRESSIONS,
    SEARCHES,
    check_logs_given,
    check_places,
    read_config,
    to_toml,
)
from train.console import console, report, user_errors
from train.evaluating import evaluate, replay, report_steps
from train.pipeline import stages_of
from train.run_settings import check_settings, write_settings
from train.stages import StageRunner

app = typer.Typer(
    name="queryrec-train",
    help="Trains the models of queryrec from query logs, or from simulated ones.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path | None, typer.Option("--config", help="TOML file with the settings.")]
Run = Annotated[Path, typer.Option("--run", help="Directory that gets everything training makes.")]
Size = Annotated[str | None, typer.Option("--size", help="tiny, demo, small or base.")]
Force = Annotated[bool, typer.Option("--force", help="Run again what is done already.")]
Logs = Annotated[
    list[Path] | None,
    typer.Option(
        "--logs", help="Directory with searches.parquet, impressions.parquet; repeatable."
    ),
]
_DEFAULT_RUN = Path("runs/default")
_FORMATS = "; ".join(f"{name}: {adapter.DESCRIPTION}" for name, adapter in ADAPTERS.items()) + "."


def _command(stage: str, help_text: str) -> None:
    """Adds the command that runs one stage."""

    def command(
        config: Config = None,
        logs: Logs = None,
        run: Run = _DEFAULT_RUN,
        size: Size = None,
        force: Force = False,
    ) -> None:
        _run_stages(lambda _: [stage], config=config, logs=logs, run=run, size=size, force=force)

    app.command(name=stage, help=help_text)(command)


_command("simulate", "Simulate search logs on real queries, with a known truth.")
_command("mine", "Mine log tables into anonymous training tables.")
_command("tokenizer", "Train the tokenizer, or take a base checkpoint's.")
_command("encoder", "Train the query encoder.")
_command("sft", "Fine-tune the generator on the universal prompt.")
_command("click", "Train and calibrate the click model.")
_command("align", "Align the generator with the click model.")
_command("index", "Build the co-occurrence index.")


@app.command(name="run")
def run_all(
    config: Config = None,
    logs: Logs = None,
    run: Run = _DEFAULT_RUN,
    size: Size = None,
    force: Force = False,
) -> None:
    """Run all stages in order, skipping those that are done."""
    _run_stages(lambda names: names, config=config, logs=logs, run=run, size=size, force=force)


@app.command(name="import", help=f"Turn a public log format into log tables. {_FORMATS}")
def import_files(
    log_format: Annotated[str, typer.Argument(metavar="FORMAT", help="One of those above.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Plain or gzip.")],
    out: Annotated[Path, typer.Option("--out", help="Directory that gets the tables.")],
) -> None:
    """Writes searches.parquet and, where the format has any, impressions.parquet."""
    with user_errors(out, interrupted="nothing was written"):
        from train.adapters.importing import import_logs

        summary = import_logs(log_format, files, out)
    report(f"{summary.num_searches} searches: {out / SEARCHES}")
    if summary.num_impressions:
        report(
            f"{summary.num_impressions} impressions, {summary.num_clicks} clicked: "
            f"{out / IMPRESSIONS}"
        )
    else:
        report("no impressions: trained on these alone, a bundle has no click model")
    if summary.is_reconstructed:
        report("RECONSTRUCTED: not what happened, but made to agree with what the files say")
    for line in (*(f"left out: {line}" for line in summary.left_out), *summary.notes):
        report(f"- {line}")


@app.command()
def teach(
    run: Run,
    checkpoint: Annotated[
        str, typer.Option(help="Language model: hub id, directory or GGUF file; slow on a CPU.")
    ],
    out: Annotated[Path, typer.Option(help="Parquet file for generator.teacher_lists.")],
    lists: Annotated[int, typer.Option(min=1, help="To write at most, over all scenarios.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the draw of queries.")] = 0,
) -> None:
    """Have a language model write lists for the queries of a mined log."""
    with user_errors(out):
        from train.generation.generator import read_prompts
        from train.generation.teacher import write_lists

        if not (run / "tokenizer.json").is_file():
            raise ValueError(f"{run}: run the stages mine and tokenizer first")
        scenarios = read_prompts(run).scenarios
        num = write_lists(
            checkpoint,
            run / "mined",
            scenarios,
            out,
            num_lists=lists,
            seed=seed,
            report=report,
        )
    report(f"{num} lists: {out}")


app.command()(evaluate)
app.command(name="report")(report_steps)
app.command()(replay)


def _run_stages(
    choose: Callable[[Sequence[str]], Sequence[str]],
    *,
    config: Path | None,
    logs: list[Path] | None,
    run: Path,
    size: str | None,
    force: bool,
) -> None:
    with user_errors(run):
        if run.exists() and not run.is_dir():
            raise ValueError(f"--run {run}: is a file; name a directory")
        kept = run / "config.toml"
        takes_kept = config is None and size is None and not logs and kept.is_file()
        if takes_kept:
            config = kept
        settings = read_config(config, size=size, logs=logs or ())
        check_places(settings.logs)
        if config is None and not logs:
            check_logs_given(run)
        check_settings(run, settings, config=config, size=size, has_logs=bool(logs))
        runner = StageRunner(run, stages_of(settings, run, report))
        chosen = choose(runner.names)
        for name in chosen:
            if name not in runner.names:
                raise ValueError(
                    f"stage {name} has nothing to do: logs.searches is set, so logs are not "
                    "simulated"
                )
        if takes_kept:
            console.print(f"settings: {kept}", markup=False)
        if "simulate" in chosen:
            console.print("no logs given: simulating")
        console.rule("effective configuration", style="dim")
        console.print(to_toml(settings), markup=False, style="dim", end="")
        console.rule(style="dim")
        for number, name in enumerate(chosen, start=1):
            console.print(f"[bold]\\[{number}/{len(chosen)}] {name}[/bold]")
            outcome = runner.run(name, force=force)
            write_settings(run, settings)
            state = "done already, skipped" if outcome.was_skipped else f"{outcome.took_s:.1f} s"
            console.print(f"  {state}: {outcome.summary}", markup=False)
            if name == "mine" and "click" in chosen:  # to know it before hours of training
                from train.mining.shown import check_mined_clicks

                check_mined_clicks(run / "mined")
        console.print(f"run directory: {run}", markup=False)


if __name__ == "__main__":
    app()
