"""What `queryrec-engine ask` prints: texts as they are, whatever they hold."""

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from engine.ask import print_answer
from engine.cli import app
from queryrec.client import Omission, Recommendation, Suggestion


def printed(text: str, *omissions: Omission) -> list[str]:
    answer = Recommendation(
        request_id="r",
        suggestions=(Suggestion(text=text, click_probability=0.1, sources=("log",), position=1),),
        auxiliary_text=text,
        attribution_token="",
        stage_us={},
        omissions=omissions,
        bundle_id="b",
    )
    shown = io.StringIO()
    print_answer(Console(file=shown, width=100), text, answer)
    return shown.getvalue().splitlines()


@pytest.mark.parametrize(
    ("omissions", "shown"),
    [([], "0.100"), ([Omission("score", "skipped", "not_in_bundle")], "-")],
)
def test_a_probability_that_no_click_model_gave_is_not_shown(omissions, shown):
    (row,) = [line for line in printed("wireless mouse", *omissions) if " log " in line]
    assert row.split()[-2] == shown


@pytest.mark.parametrize("text", ["plain", "[red]x", "x[/b]", "x\\[/b]", "x \\", "[link=http://a]"])
def test_texts_that_look_like_markup_are_printed_as_they_are(text):
    lines = printed(text)
    assert lines[0] == text
    assert any(f" {text} " in line for line in lines[1:])


@pytest.mark.parametrize(
    ("option", "value"),
    [("--timeout-ms", "0"), ("--max-suggestions", "99999999999"), ("--session-query", "\udcff")],
)
def test_what_no_request_can_have_ends_with_one_line(option, value):
    done = CliRunner().invoke(app, ["ask", "hi", "--target", "127.0.0.1:1", option, value])
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert line.startswith("cannot ask: ")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--timeout-ms", "0"], "--timeout-ms is 0; it must be above 0"),
        (["--target", "localhost"], "--target localhost has no port; give HOST:PORT"),
        (["--target", "dns:///engine"], "--target dns:///engine has no port"),
        (["--target", "dns:localhost"], "--target dns:localhost has no port"),
        (["--target", "[::1]"], "--target [::1] has no port"),
        (["--target", "::1"], "--target ::1 has no port; give HOST:PORT, or [HOST]:PORT"),
        (["--target", "fe80::1%lo"], "--target fe80::1%lo has no port"),
    ],
)
def test_what_is_wrong_is_told_by_its_option(options, told):
    done = CliRunner().invoke(app, ["ask", "hi", *options])
    assert done.exit_code == 1
    assert done.output.startswith(f"cannot ask: {told}")


@pytest.mark.parametrize(
    "target",
    [
        "unix:/nowhere/engine",
        "dns:///127.0.0.1:1",
        "dns:localhost:1",
        "ipv4:127.0.0.1:1",
        "[::1]:1",
    ],
)
def test_other_ways_to_write_an_address_are_taken(target):
    done = CliRunner().invoke(app, ["ask", "hi", "--target", target, "--timeout-ms", "10000"])
    assert done.output.splitlines()[-1] == f"is an engine running at {target}?"


def test_an_engine_that_is_not_there_is_asked_for_by_its_address():
    done = CliRunner().invoke(
        app, ["ask", "hi", "--target", "127.0.0.1:1", "--timeout-ms", "10000"]
    )
    assert done.exit_code == 1
    why, hint = done.output.splitlines()
    assert why.count("UNAVAILABLE") == 1
    assert hint == "is an engine running at 127.0.0.1:1?"
