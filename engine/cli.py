"""The command line: `serve`, `ask`, `impressions`. Knows nothing of how they are done."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engine.config import Config

_TERMINATED = 128 + signal.SIGTERM  # as a shell says it

app = typer.Typer(
    help="Serves query suggestions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # it prints local variables, user text among them
)


@app.command()
def serve(
    bundle: Annotated[
        Path, typer.Option(help="Bundle directory, or a link to it that SIGHUP follows again.")
    ],
    canary: Annotated[
        Path | None, typer.Option(help="Bundle that answers a share of the sessions.")
    ] = None,
    canary_share: Annotated[float | None, typer.Option(help="That share, 0 to 1.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that share the port.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load, verify, warm, answer a sample, and exit.")
    ] = False,
) -> None:
    """Serves a bundle over gRPC.

    Every setting comes from the first of: flag, environment variable QUERYREC_<SECTION>_<FIELD>,
    --config file, default.
    """
    if not dry_run:
        # It never ends an engine, also not one that has yet to say what it does about it.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Until the engine has a say in it: the first process of a container would not get this signal.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(_TERMINATED if dry_run else 0))
    # What ran before this line was mostly the interpreter and its imports.
    started_s = time.monotonic() - time.process_time()
    # One short text at a time is tokenised: waking threads for it costs more than it saves.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Imported after that, and only what is needed: --help is fast, and a supervisor holds no model
    # library.
    from engine.config import load_config
    from engine.serving.console import complain
    from engine.serving.places import Places
    from engine.telemetry import logs, writing

    flags = {
        "server.host": host,
        "server.port": port,
        "server.workers": workers,
        "server.canary_share": canary_share,
    }
    places = Places(bundle, canary)
    try:
        if canary_share is not None and canary is None:
            raise ValueError("--canary-share needs --canary, the bundle that answers that share")
        settings = load_config(config, os.environ, flags)
        _print_settings(settings)
        logs.set_up(settings.log.format, settings.log.level)
        if dry_run:
            from engine.serving.dryrun import dry_run as run

            writing.flush()  # the settings come before what it prints
            for directory in (d for d in places if d is not None):
                asyncio.run(run(directory, settings))
        elif settings.server.workers > 1:
            from engine.serving.supervisor import supervise

            asyncio.run(supervise(places, settings, started_s=started_s))
        else:
            from engine.serving.server import serve

            asyncio.run(serve(places, settings, started_s=started_s))
    except ValueError as error:  # BundleError is one
        complain(str(error))
        raise typer.Exit(1) from None


@app.command()
def ask(
    query: Annotated[str, typer.Argument(help="What the user searched for, or typed so far.")],
    scenario: Annotated[str, typer.Option(help="Panel to fill.")] = "suggestion",
    target: Annotated[str, typer.Option(help="Address of the engine.")] = "127.0.0.1:50051",
    session_query: Annotated[
        list[str] | None, typer.Option(help="Earlier query of the session; oldest first.")
    ] = None,
    max_suggestions: Annotated[int, typer.Option(help="0: the scenario's default.")] = 0,
    timeout_ms: Annotated[float, typer.Option(help="Deadline of the question.")] = 1000.0,
    clicks: Annotated[
        list[int] | None, typer.Option(help="Report a click on the suggestion at this position.")
    ] = None,
) -> None:
    """Asks a running engine and prints the answer."""
    from engine.ask import ask as ask_engine

    succeeded = asyncio.run(
        ask_engine(
            target,
            scenario,
            query,
            session_queries=session_query or [],
            max_suggestions=max_suggestions,
            timeout_ms=timeout_ms,
            clicks=clicks or [],
        )
    )
    if not succeeded:
        raise typer.Exit(1)


@app.command()
def impressions(
    feedback: Annotated[Path, typer.Option(help="Directory of the feedback log.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; must not exist.")],
    window_s: Annotated[
        float, typer.Option(help="Seconds after its response in which a click counts.")
    ] = 1800.0,
) -> None:
    """Turns the feedback log into the table of impressions that queryrec-train reads.

    Reads closed segments. A running engine closes its own after ten minutes, so the clicks on its
    latest answers may be missing.
    """
    from engine.feedback.impressions import to_impressions
    from engine.feedback.segments import segments
    from engine.serving.console import complain

    try:
        if not feedback.is_dir():
            raise ValueError(f"--feedback {feedback} is not a directory")
        if out.is_dir():
            raise ValueError(f"--out {out} is a directory; name a file in it")
        if out.exists():
            raise ValueError(f"--out {out} exists; remove it or name another file")
        closed = segments(feedback)
        num_open = len(segments(feedback, include_open=True)) - len(closed)
        if not closed:
            raise ValueError(f"--feedback {feedback} has no closed segments, {num_open} open")
        counts = to_impressions(closed, out, window_s=window_s)
    except (ValueError, OSError) as error:
        complain(str(error))
        raise typer.Exit(1) from None
    print(f"{counts.num_rows} rows of {counts.num_requests} requests written to {out}")
    print(f"{counts.num_shown} shown, {counts.num_clicked} clicked")
    print(f"{counts.num_late_clicks} clicks outside the window left out")
    print(f"{counts.num_cut_texts} positions left out whose text the token had no room for")
    print(f"{len(closed)} segments read, {num_open} open ones left out")


def _print_settings(settings: "Config") -> None:
    from engine.config import describe
    from engine.execution.cpu import model_threads
    from engine.serving.console import say

    say(f"effective configuration\n{describe(settings)}")
    num_workers = settings.server.workers
    threads = settings.models.num_threads or model_threads(num_workers)
    each = f" in each of {num_workers} workers" if num_workers > 1 else ""
    say(f"{threads} model threads{each}")
