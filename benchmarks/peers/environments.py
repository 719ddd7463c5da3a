"""A virtual environment for each peer, from pinned versions. Knows nothing of what runs in it.

Versions are those that were tried together; `docs/decisions.md` says what did not work.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Report = Callable[[str], None]

# Named in every step, so that no dependency exchanges it for another build.
_TORCH = "torch==2.13.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Packages to install, in steps; each step is the arguments of one `pip install`."""

    name: str
    steps: tuple[tuple[str, ...], ...]


OPENVINO = Environment(
    name="openvino",
    steps=(
        (_TORCH,),
        (
            _TORCH,
            "openvino==2026.4.1",
            "openvino-genai==2026.4.1.0",
            "openvino-tokenizers==2026.4.1.0",
            "nncf==3.4.0",
            "transformers==4.57.6",
            "optimum==2.1.0",
            "optimum-onnx==0.1.0",
        ),
        # It asks for torchvision, which text models do not need.
        ("--no-deps", "optimum-intel==2.2.0"),
    ),
)
ONNXRUNTIME_GENAI = Environment(
    name="onnxruntime_genai",
    steps=(
        (_TORCH,),
        (
            _TORCH,
            "onnxruntime-genai==0.18.0",
            "onnxruntime==1.32.0",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
            "transformers==5.24.0",
        ),
    ),
)
CTRANSLATE2 = Environment(
    name="ctranslate2",
    steps=((_TORCH,), (_TORCH, "ctranslate2==4.8.5", "transformers==4.57.6")),
)


def python_of(environment: Environment | None, root: Path, report: Report) -> Path:
    """Returns the interpreter of an environment, which is made unless it is there already.

    Args:
        environment: None is the one that runs this.
        root: where environments are kept between runs.
        report: called with a line of progress.

    Raises:
        OSError: it cannot be set up; the message ends with what pip said.
    """
    if environment is None:
        return Path(sys.executable)
    directory = root / environment.name / "venv"
    python, stamp = directory / "bin" / "python", directory / ".installed"
    wanted = "\n".join(" ".join(step) for step in environment.steps)
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    report(f"{environment.name}: installing {', '.join(environment.steps[-1])} and what it needs")
    _run([sys.executable, "-m", "venv", str(directory)])
    for step in environment.steps:
        _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *step])
    stamp.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise OSError(f"{' '.join(command[:5])} ...: {(errors or lines)[-1]}")
