"""The commands that judge a bundle: `evaluate`, `report`, `replay`. Know nothing of figures.

What was given, and where results go, is tried before the work.
"""

from pathlib import Path
from typing import Annotated

import typer

from train.console import console, report, user_errors
from train.results import results_in, write_results

HELDOUT = Path("examples/data/heldout.txt.gz")
Run = Annotated[Path, typer.Option("--run", help="Run directory that queryrec-train wrote.")]
Bundle = Annotated[Path, typer.Option(help="Bundle that was exported from the run.")]
Heldout = Annotated[
    Path, typer.Option(help="Queries that the log lacks, one a line, plain or gzip.")
]


def evaluate(
    run: Run,
    bundle: Bundle,
    out: Annotated[Path, typer.Option(help="Directory that gets eval.json and eval.html.")],
    heldout: Heldout = HELDOUT,
    web: Annotated[
        Path | None, typer.Option(help="Those of them that are a slice of their own.")
    ] = None,
    sessions: Annotated[Path | None, typer.Option(help="Real sessions, JSON lines.")] = None,
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
    with user_errors(out), results_in(out):
        _check_directories({"--run": run, "--bundle": bundle, "--minilm": minilm})
        _check_heldout(heldout)
        _check_files({"--web": web, "--sessions": sessions, "--real-clicks": real_clicks})
        from train.evaluation.sections import evaluation_page
        from train.evaluation.suite import JSON_NAME, PAGE_NAME, Data
        from train.evaluation.suite import evaluate as evaluate_bundle
        from train.evaluation.summary import describe

        data = Data(heldout, web, sessions, minilm, real_clicks)
        evaluation = evaluate_bundle(
            bundle, run, data, num_queries=queries, seed=seed, report=report
        )
        for line in describe(evaluation):
            console.print(line, markup=False)
        made = {JSON_NAME: evaluation, PAGE_NAME: evaluation_page(evaluation)}
        console.print(write_results(out, made), markup=False)


def report_steps(
    run: Run,
    bundle: Bundle,
    out: Annotated[Path, typer.Option(help="Directory that gets report.json and report.html.")],
    heldout: Heldout = HELDOUT,
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
    with user_errors(out), results_in(out):
        _check_directories({"--run": run, "--bundle": bundle, "--second-world": second_world})
        if second_world is not None and not (second_world / "world.json").is_file():
            raise ValueError(
                f"--second-world {second_world}: there is no world.json in it; name the directory "
                "`simulated` of another run"
            )
        _check_heldout(heldout)
        _check_files({"--closed-loop": closed_loop})
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
            report=report,
        )
        results = {"report.json": made, "report.html": report_page(made)}
        console.print(write_results(out, results), markup=False)


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
    with user_errors(out), results_in(out):
        _check_directories({"--run": run, "--bundle": bundle, "--judge": judge})
        from train.report.own_log import replay as replay_log

        made = replay_log(run, bundle, judge=judge, num_requests=requests, seed=seed, report=report)
        for line in made.describe():
            console.print(line, markup=False, highlight=False)
        console.print(write_results(out, {"replay.json": made}), markup=False)


def _check_directories(given: dict[str, Path | None]) -> None:
    for option, path in given.items():
        if path is not None and not path.is_dir():
            raise ValueError(f"{option} {path}: there is no such directory")


def _check_files(given: dict[str, Path | None]) -> None:
    for option, path in given.items():
        if path is not None and not path.is_file():
            raise ValueError(f"{option} {path}: there is no such file")


def _check_heldout(path: Path) -> None:
    if not path.is_file():
        raise ValueError(
            f"--heldout {path}: there is no such file; give queries that the log lacks, one a "
            "line, plain or gzip"
        )
