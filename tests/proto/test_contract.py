import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import queryrec
from queryrec.v1 import error_reason_pb2

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
ERROR_REASONS = (PROTO / "queryrec/v1/error_reason.proto").read_text()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("proto_generate", PROTO / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_stubs_match_the_proto_files():
    check = subprocess.run(
        [sys.executable, PROTO / "generate.py", "--check"], capture_output=True, text=True
    )
    assert (check.returncode, check.stderr) == (0, "")


def test_drift_names_each_file_that_differs(generate, tmp_path):
    committed, fresh = tmp_path / "committed", tmp_path / "fresh"
    shutil.copytree(PROTO / "gen", committed)
    shutil.copytree(PROTO / "gen", fresh)
    assert generate.drift(committed, fresh) == []

    (committed / "queryrec/v1/stage_pb2.py").write_text("changed")
    (committed / "queryrec/v1/scenario_pb2.pyi").unlink()
    (committed / "queryrec/v1/old_pb2.py").write_text("left over")

    assert generate.drift(committed, fresh) == [
        "queryrec/v1/old_pb2.py: not generated from any .proto file",
        "queryrec/v1/scenario_pb2.pyi: missing",
        "queryrec/v1/stage_pb2.py: out of date",
    ]


def test_stubs_of_a_proto_file_that_is_gone_are_removed(generate, tmp_path):
    committed, fresh = tmp_path / "committed", tmp_path / "fresh"
    shutil.copytree(PROTO / "gen", committed)
    shutil.copytree(PROTO / "gen", fresh)
    (committed / "queryrec/v1/stage_pb2.py").write_text("changed")
    (committed / "queryrec/v1/scenario_pb2.pyi").unlink()
    (committed / "queryrec/v1/old_pb2.py").write_text("left over")

    generate.replace(committed, fresh)

    assert generate.drift(committed, fresh) == []


def test_the_contract_passes_lint_and_format():
    buf = Path(sys.executable).with_name("buf")
    for arguments in (["lint"], ["format", "--diff", "--exit-code"]):
        run = subprocess.run([buf, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr


def test_queryrec_is_one_namespace_package_of_stubs_and_client():
    assert queryrec.__file__ is None
    assert importlib.util.find_spec("queryrec.client") is not None
    assert importlib.util.find_spec("queryrec.v1.suggestion_pb2") is not None


def test_nothing_shadows_the_packages():
    assert not (PROTO / "__init__.py").exists()
    assert not list(PROTO.glob("gen/queryrec/__init__.py"))


@pytest.mark.parametrize("name", error_reason_pb2.ErrorReason.keys()[1:])
def test_every_error_reason_has_a_worked_example_of_itself(name):
    comment = ERROR_REASONS.partition(f"// {name} means")[2].partition(f"  {name} =")[0]
    examples = re.findall(r'"reason": "(\w+)", "domain": "queryrec.v1"', comment)
    assert examples == [name]
