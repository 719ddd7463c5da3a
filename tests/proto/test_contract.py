import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import queryrec
from engine import errors
from queryrec.v1 import error_reason_pb2
from queryrec.v1.feedback_pb2 import FeedbackEvent, FeedbackKind
from queryrec.v1.query_recommender_service_pb2 import RecordFeedbackRequest

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


@pytest.mark.parametrize(
    "error",
    [
        errors.query_empty(),
        errors.text_too_long("query", size_bytes=300, max_bytes=256),
        errors.text_invalid("session_queries[3]", "no control characters"),
        errors.text_too_long("answer", size_bytes=9000, max_bytes=8192),
        errors.too_many_items("exclude", num_items=300, max_items=256),
        errors.ScenarioUnknown(["suggestion", "completion", "clarification"]),
        errors.max_suggestions_out_of_range(-1, max_value=32),
        errors.latency_budget_invalid(),
        errors.TokenMalformed("is cut"),
        errors.TokenForged("2026-03"),
        errors.TokenKeyUnknown("2025-11"),
        errors.event_invalid("position", "from 1 to 8"),
        errors.QueueFull("recommend"),
        errors.NotReady("the bundle is loading"),
        errors.DeadlineUnreachable(),
        errors.FeedbackNotStored(),
        errors.InternalFault("0f8fad5bd9cb469fa16570867728950e"),
    ],
    ids=lambda error: error.reason_name,
)
def test_the_engine_s_errors_are_the_worked_examples(error):
    comment = ERROR_REASONS.partition(f"  // {error.reason_name} means")[2]
    example = re.sub(r"\n\s*//", "", comment[comment.index("{") : comment.index("}\n") + 1])
    assert json.loads(example) == {
        "reason": error.reason_name,
        "domain": errors.DOMAIN,
        "metadata": error.metadata,
    }


def test_the_most_events_with_the_longest_fields_fit_a_message():
    event = FeedbackEvent(
        event_id="e" * 128,
        attribution_token="t" * 2048,
        kind=FeedbackKind.FEEDBACK_KIND_DISMISS,
        position=32,
        user_key="u" * 128,
    )
    event.time.FromJsonString("9999-12-31T23:59:59.999999999Z")
    assert event.ByteSize() < 2.5 * 1024
    assert RecordFeedbackRequest(events=[event] * 256).ByteSize() < 1 << 20
