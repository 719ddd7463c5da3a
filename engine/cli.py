"""The command line: `serve`, `ask`, `impressions`. Knows nothing of how they are done."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.config import Config, describe, load_config
from engine.cpu import num_usable_cpus

app = typer.Typer(
    help="Serves query suggestions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # it prints local variables, user text among them
)


@app.command()
def serve(
    bundle: Annotated[Path, typer.Option(help="Bundle directory, made by queryrec-export.")],
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load, verify, warm, answer a sample, and exit.")
    ] = False,
) -> None:
    """Serves a bundle over gRPC.

    Every setting comes from the first of: flag, environment variable QUERYREC_<SECTION>_<FIELD>,
    --config file, default.
    """
    # One short text at a time is tokenised: waking threads for it costs more than it saves.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from engine import dryrun, server  # after the line above; also keeps --help fast

    try:
        settings = load_config(config, os.environ, {"server.host": host, "server.port": port})
        _print_settings(settings)
        if dry_run:
            asyncio.run(dryrun.dry_run(bundle, settings))
        else:
            asyncio.run(server.serve(bundle, settings))
    except ValueError as error:  # BundleError is one
        print(f"queryrec-engine: {error}", file=sys.stderr)
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
    timeout_ms: Annotated[float, typer.Option(help="Deadline of the call.")] = 1000.0,
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
            timeout_s=timeout_ms / 1000,
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
    from engine.feedback import segments
    from engine.impressions import to_impressions

    try:
        if not feedback.is_dir():
            raise ValueError(f"--feedback {feedback} is not a directory")
        if out.exists():
            raise ValueError(f"--out {out} exists; remove it or name another file")
        closed = segments(feedback)
        num_open = len(segments(feedback, include_open=True)) - len(closed)
        if not closed:
            raise ValueError(f"--feedback {feedback} has no closed segments, {num_open} open")
        counts = to_impressions(closed, out, window_s=window_s)
    except (ValueError, OSError) as error:
        print(f"queryrec-engine: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{counts.num_rows} rows of {counts.num_requests} requests written to {out}")
    print(f"{counts.num_shown} shown, {counts.num_clicked} clicked")
    print(f"{counts.num_late_clicks} clicks outside the window left out")
    print(f"{counts.num_cut_texts} positions left out whose text the token had no room for")
    print(f"{len(closed)} segments read, {num_open} open ones left out")


def _print_settings(settings: Config) -> None:
    print("queryrec-engine: effective configuration", flush=True)
    print(describe(settings))
    threads = settings.models.num_threads or num_usable_cpus()
    print(f"queryrec-engine: {threads} model threads", flush=True)
