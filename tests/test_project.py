"""What the project says of itself is true: commands exist, names do not clash, serving is light."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import engine.cli
import export.cli
import train.cli

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", *PAGES]
APPS = {"engine": engine.cli.app, "train": train.cli.app, "export": export.cli.app}


def test_no_file_shadows_a_package() -> None:
    names = {"train.py", "export.py", "engine.py"}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert not [p for p in tracked if Path(p).name in names or p == "proto/__init__.py"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_that_is_named_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / document).read_text()))
    assert named <= targets


@pytest.mark.parametrize(
    ("place", "variable", "told"),
    [
        ("no/run/bundle", "RUN=no/run", "queryrec-export bundle --run no/run --out no/run/bundle"),
        ("no/bundle", "BUNDLE=no/bundle", "set BUNDLE=DIR"),
        ("no/bundle", "BUNDLE=./no/bundle", "set BUNDLE=DIR"),
        ("no/bundle", "JUDGED=no/bundle", "set JUDGED=DIR"),
    ],
)
def test_make_says_how_a_bundle_that_is_missing_comes_to_be(
    place: str, variable: str, told: str
) -> None:
    made = subprocess.run(
        ["make", "--no-print-directory", f"{place}/manifest.json", variable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},  # make runs tests
    )
    assert made.returncode != 0
    assert made.stdout.startswith(f"no bundle at {place}: ")
    assert told in made.stdout


def shell_commands() -> list[str]:
    texts = [(ROOT / document).read_text() for document in DOCUMENTS]
    blocks = [b for text in texts for b in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(".venv/bin/queryrec-")))


@pytest.mark.parametrize("line", shell_commands())
def test_every_command_of_the_documents_parses(line: str) -> None:
    program, name, *arguments = re.findall(r'"[^"]*"|\S+', line)
    group: Any = typer.main.get_command(APPS[program.rsplit("-", 1)[1]])
    command = group.commands[name]
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    assert {a for a in arguments if a.startswith("--")} <= options


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_between_files_leads_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_engine_runs_without_training_libraries() -> None:
    code = (
        "import sys, engine.serving.server, engine.ask, engine.serving.dryrun\n"
        "heavy = {'torch', 'transformers', 'onnx', 'optimum', 'ibis'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_engine_runs_without_tritonclient_and_says_what_triton_needs() -> None:
    code = (
        "import asyncio, sys\n"
        "sys.modules['tritonclient'] = None\n"
        "import engine.serving.server, engine.execution.triton\n"
        "asyncio.run(engine.execution.triton.connect('127.0.0.1:8001', None, None, None))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "ValueError: triton.url is" in done.stderr
    assert "extra" in done.stderr


def test_the_engine_runs_without_opentelemetry_and_says_what_traces_need() -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "import engine.serving.server, engine.telemetry.tracing\n"
        "engine.telemetry.tracing.connect('http://127.0.0.1:4317', 0.1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "ValueError: tracing.endpoint is" in done.stderr
    assert "extra" in done.stderr
