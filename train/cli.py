"""The command `queryrec-train`. Knows nothing of how stages work.

Settings come from `--config FILE` (TOML); `--size` and `--logs` override the file's. Every stage
is done once and skipped afterwards, unless its settings or its inputs changed, or `--force` is
given. Errors in what the user brought end the command with one line and exit code 2.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from train.adapters import ADAPTERS
from train.config import (
    IMPRESSIONS,
    SEARCHES,
    TrainConfig,
    check_logs_given,
    check_places,
    read_config,
    to_toml,
)
from train.pipeline import stages_of
from train.stages import StageRunner, is_first_process

app = typer.Typer(
    name="queryrec-train",
    help="Trains the models of queryrec from query logs, or from simulated ones.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_console = Console(highlight=False, soft_wrap=True, quiet=not is_first_process())
_errors = Console(stderr=True, highlight=False, soft_wrap=True)

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
    with user_errors("nothing was written"):
        from train.adapters.importing import import_logs

        summary = import_logs(log_format, files, out)
    _report(f"{summary.num_searches} searches: {out / SEARCHES}")
    if summary.num_impressions:
        _report(
            f"{summary.num_impressions} impressions, {summary.num_clicks} clicked: "
            f"{out / IMPRESSIONS}"
        )
    else:
        _report("no impressions: trained on these alone, a bundle has no click model")
    if summary.is_reconstructed:
        _report("RECONSTRUCTED: not what happened, but made to agree with what the files say")
    for line in (*(f"left out: {line}" for line in summary.left_out), *summary.notes):
        _report(f"- {line}")


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
    with user_errors():
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
            report=_report,
        )
    _report(f"{num} lists: {out}")


@app.command()
def evaluate(
    run: Run,
    bundle: Annotated[Path, typer.Option(help="Bundle that was exported from the run.")],
    out: Annotated[Path, typer.Option(help="Directory that gets eval.json and eval.html.")],
    heldout: Annotated[
        Path, typer.Option(help="Queries that occur in no log, one a line, gzip.")
    ] = Path("examples/data/heldout.txt.gz"),
    web: Annotated[
        Path | None, typer.Option(help="Those of them that are a slice of their own, gzip.")
    ] = None,
    sessions: Annotated[Path | None, typer.Option(help="Real sessions, JSON lines, gzip.")] = None,
    real_clicks: Annotated[
        Path | None, typer.Option(help="Panes with click shares: query, pos, option, cctr.")
    ] = None,
    minilm: Annotated[
        Path | None, typer.Option(help="Directory of a sentence encoder to compare with.")
    ] = None,
    queries: Annotated[
        int, typer.Option(min=10, help="Held-out queries that lists are made for.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """Evaluate a bundle against simple rivals; writes JSON and a page."""
    with user_errors():
        from train.evaluation.sections import evaluation_page
        from train.evaluation.suite import JSON_NAME, PAGE_NAME, Data
        from train.evaluation.suite import evaluate as evaluate_bundle
        from train.evaluation.summary import describe

        data = Data(heldout, web, sessions, minilm, real_clicks)
        evaluation = evaluate_bundle(
            bundle, run, data, num_queries=queries, seed=seed, report=_report
        )
        for line in describe(evaluation):
            _console.print(line, markup=False)
        _write_results(out / JSON_NAME, evaluation, out / PAGE_NAME, evaluation_page(evaluation))


@app.command()
def report(
    run: Run,
    bundle: Annotated[Path, typer.Option(help="Bundle that was exported from the run.")],
    out: Annotated[Path, typer.Option(help="Directory that gets report.json and report.html.")],
    heldout: Annotated[
        Path, typer.Option(help="Queries that occur in no log, one a line, gzip.")
    ] = Path("examples/data/heldout.txt.gz"),
    second_world: Annotated[
        Path | None, typer.Option(help="Another simulation, whose truth scores the same lists.")
    ] = None,
    prompted: Annotated[
        str,
        typer.Option(help="Checkpoint of a language model that writes lists untrained; slow."),
    ] = "",
    closed_loop: Annotated[
        Path | None, typer.Option(help="rounds.json of `make closed-loop`, to show beside it.")
    ] = None,
    placebo_prompts: Annotated[
        int, typer.Option(min=0, help="Of a round aligned with a meaningless reward; 0: none.")
    ] = 300,
    queries: Annotated[
        int, typer.Option(min=10, help="Held-out queries that lists are made for.")
    ] = 300,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """Report what each step of training adds, by the truth of simulated logs."""
    with user_errors():
        from train.report.page import report_page
        from train.report.report import make_report

        made = make_report(
            run,
            bundle,
            heldout,
            second_world=second_world,
            prompted=prompted,
            kept=out / "prompted.json",
            closed_loop=closed_loop,
            placebo_prompts=placebo_prompts,
            num_queries=queries,
            seed=seed,
            report=_report,
        )
        _write_results(out / "report.json", made, out / "report.html", report_page(made))


@app.command()
def replay(
    run: Run,
    bundle: Annotated[Path, typer.Option(help="Bundle that answers the log's requests.")],
    out: Annotated[Path, typer.Option(help="Directory that gets replay.json.")],
    judge: Annotated[
        Path | None,
        typer.Option(help="Run directory of a click model that was trained on other data."),
    ] = None,
    requests: Annotated[
        int, typer.Option(min=10, help="Held-out requests of each scenario at most.")
    ] = 2000,
    seed: Annotated[int, typer.Option(help="Of their draw.")] = 0,
) -> None:
    """Compare a bundle with what a log showed, where no truth is known."""
    with user_errors():
        from train.report.own_log import replay as replay_log

        made = replay_log(
            run, bundle, judge=judge, num_requests=requests, seed=seed, report=_report
        )
        for line in made.describe():
            _console.print(line, markup=False, highlight=False)
        _write_json(out / "replay.json", made)
        _console.print(str(out / "replay.json"), markup=False)


def _write_json(path: Path, results: msgspec.Struct) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


def _write_results(json_path: Path, results: msgspec.Struct, page_path: Path, page: str) -> None:
    _write_json(json_path, results)
    page_path.write_text(page, encoding="utf-8")
    _console.print(f"{json_path}, {page_path}", markup=False)


def _run_stages(
    choose: Callable[[Sequence[str]], Sequence[str]],
    *,
    config: Path | None,
    logs: list[Path] | None,
    run: Path,
    size: str | None,
    force: bool,
) -> None:
    with user_errors():
        settings = read_config(config, size=size, logs=logs or ())
        check_places(settings.logs)
        if config is None and not logs:
            check_logs_given(run)
        runner = StageRunner(run, stages_of(settings, run, _report))
        chosen = choose(runner.names)
        for name in chosen:
            if name not in runner.names:
                raise ValueError(
                    f"stage {name} has nothing to do: logs.searches is set, so logs are not "
                    "simulated"
                )
        if "simulate" in chosen:
            _console.print("no logs given: simulating")
        _console.rule("effective configuration", style="dim")
        _console.print(to_toml(settings), markup=False, style="dim", end="")
        _console.rule(style="dim")
        for number, name in enumerate(chosen, start=1):
            _console.print(f"[bold]\\[{number}/{len(chosen)}] {name}[/bold]")
            outcome = runner.run(name, force=force)
            _write_config(run, settings)
            state = "done already, skipped" if outcome.was_skipped else f"{outcome.took_s:.1f} s"
            _console.print(f"  {state}: {outcome.summary}", markup=False)
            if name == "mine" and "click" in chosen:  # to know it before hours of training
                from train.mining.shown import check_mined_clicks

                check_mined_clicks(run / "mined")
        _console.print(f"run directory: {run}", markup=False)


@contextmanager
def user_errors(interrupted: str = "the same command goes on from here") -> Iterator[None]:
    """Turns the user's mistakes into one line and exit code 2; SIGINT and SIGTERM into 130.

    Args:
        interrupted: what an interruption means.
    """
    # As Ctrl-C does, so that what has to be cleaned up is.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("train", "engine"):
            raise
        _errors.print(f"error: training needs more packages ({missing}): run `make setup`")
        raise typer.Exit(2) from None
    except ValueError as error:
        _errors.print(f"error: {' '.join(str(error).split())}", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _errors.print(f"interrupted; {interrupted}", markup=False)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(message: str) -> None:
    _console.print(f"  {message}", markup=False)


def _write_config(run: Path, settings: TrainConfig) -> None:
    if not is_first_process():
        return
    written = run / "config.toml.partial"
    written.write_text(to_toml(settings), encoding="utf-8")
    written.rename(run / "config.toml")


if __name__ == "__main__":
    app()
