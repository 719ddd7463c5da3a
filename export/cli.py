"""The command `queryrec-export`.

What the user brought wrong, or the disk does not take, ends it with one line and exit code 2.
"""
# What does the work is imported when a command runs, so that wrong options are told at once.

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from engine.config import DeviceKind
from export.options import MAX_BATCH_SIZE, Backend, Mode, Precision
from export.packing import check_free
from train.console import user_errors

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
_console = Console(stderr=True)


@app.command()
def bundle(
    run: Annotated[Path, typer.Option(help="Run directory that queryrec-train wrote.")],
    out: Annotated[Path, typer.Option(help="Bundle directory to write; must not exist.")],
    mode: Annotated[
        Mode | None, typer.Option(help="How the generator decodes; by default as it was taught.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of all graphs.")] = "int8",
    parity_requests: Annotated[
        int, typer.Option(min=1, help="Requests compared with the torch reference.")
    ] = 24,
) -> None:
    """Write a verified bundle from a training run."""
    with _user_errors(out):
        check_free(out)
        from export.bundle import export_bundle

        manifest = export_bundle(
            run, out, mode=mode, precision=precision, num_parity_requests=parity_requests,
            report=lambda line: _console.print(f"[dim]{line}[/dim]"),
        )  # fmt: skip
    table = Table("checked", "figure", "value", title=f"bundle {manifest.bundle_id} in {out}")
    for name, figures in manifest.parity.items():
        for figure, number in figures.items():
            table.add_row(name, figure, f"{number:.4g}")
    _console.print(table)


@app.command()
def index(
    bundle: Annotated[Path, typer.Option(help="Bundle whose models stay as they are.")],
    run: Annotated[Path, typer.Option(help="Run directory in which newer logs are mined.")],
    out: Annotated[Path, typer.Option(help="Bundle directory to write; must not exist.")],
    threads: Annotated[
        int, typer.Option(min=1, help="With more than one, no two builds are the same.")
    ] = 1,
) -> None:
    """Write a bundle again with an index of newer logs."""
    with _user_errors(out):
        check_free(out)
        from export.index import refresh_index

        manifest = refresh_index(
            bundle, run, out, num_threads=threads,
            report=lambda line: _console.print(f"[dim]{line}[/dim]"),
        )  # fmt: skip
    assert manifest.index is not None
    _console.print(
        f"bundle {manifest.bundle_id} with {manifest.index.num_queries} queries in {out}"
    )


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="Bundle directory to write; must not exist.")],
    mode: Annotated[Mode, typer.Option(help="How the generator decodes.")] = "slots",
    precision: Annotated[Precision, typer.Option(help="Of all graphs.")] = "int8",
) -> None:
    """Write a tiny bundle with random weights, to try the engine without training."""
    with _user_errors(out):
        check_free(out)
        from export.sample import write_sample_bundle

        manifest = write_sample_bundle(out, mode=mode, precision=precision)
    _console.print(f"random-weight bundle {manifest.bundle_id} in {out}")


@app.command()
def triton(
    bundle: Annotated[Path, typer.Option(help="Bundle directory.")],
    out: Annotated[Path, typer.Option(help="Model repository to write; must not exist.")],
    backend: Annotated[Backend, typer.Option(help="Triton's, which runs the graphs.")],
    device: Annotated[DeviceKind, typer.Option(help="Where the graphs run.")] = "cpu",
    instances: Annotated[
        int, typer.Option(min=1, help="Of each model, at work at the same time.")
    ] = 1,
    threads: Annotated[
        int, typer.Option(min=0, help="Of each instance; 0 shares out this machine's CPUs.")
    ] = 0,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Requests that Triton runs together.")
    ] = MAX_BATCH_SIZE,
) -> None:
    """Write a Triton model repository from a bundle."""
    with _user_errors(out):
        check_free(out)
        from engine.execution.cpu import num_usable_cpus
        from export.triton import write_repository

        names = write_repository(
            bundle, out, backend=backend, device=device, num_instances=instances,
            num_threads=threads or max(1, num_usable_cpus() // instances),
            max_batch_size=max_batch_size,
        )  # fmt: skip
    _console.print(f"{', '.join(names)} in {out}")


@app.command()
def milvus(
    bundle: Annotated[Path, typer.Option(help="Bundle directory.")],
    uri: Annotated[str, typer.Option(help="http://HOST:PORT or https://HOST:PORT of a Milvus.")],
    token_file: Annotated[str, typer.Option(help="File with user:password or an API key.")] = "",
    database: Annotated[str, typer.Option(help="Empty: the server's default.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove the bundle's collection first.")
    ] = False,
) -> None:
    """Load the vectors of a bundle's index into a Milvus server."""
    with _user_errors(bundle):
        from engine.execution.milvus import Access
        from export.milvus import load_vectors

        name = load_vectors(
            bundle, Access.of(uri, token_file, database), replace=replace,
            report=lambda line: _console.print(f"[dim]{line}[/dim]"),
        )  # fmt: skip
    _console.print(f"collection {name} at {uri}")


def _user_errors(place: Path) -> AbstractContextManager[None]:
    return user_errors(place, interrupted="nothing was written", doing="exporting")
