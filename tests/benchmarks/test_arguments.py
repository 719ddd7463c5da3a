"""Command lines of the benchmarks are checked before anything is installed or measured."""

import pytest

from benchmarks import profile, sampler
from benchmarks.peers.__main__ import parse


def test_defaults_compare_everything() -> None:
    settings = parse([])
    assert settings.models == ("small", "base")
    assert settings.prompts == (1, 4, 16)
    assert "openvino" in settings.peers
    assert settings.num_threads >= 1
    assert not settings.is_setup_only


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "huge"], "--models has ['huge']"),
        (["--models", ","], "--models has nothing"),
        (["--peers", "openvino,nobody"], "--peers has ['nobody']"),
        (["--prompts", "0"], "--prompts is 0"),
        (["--prompts", "1,x"], "--prompts is 1,x"),
        (["--prompts", "65"], "--prompts is 65"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--threads", "-1"], "--threads is -1"),
    ],
)
def test_nonsense_is_refused_with_what_would_be_right(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--models", "x"], ["--precisions", "int4"], ["--prompts", "-1"]]
)
def test_the_profile_refuses_nonsense_too(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        profile.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    "arguments", [["--lists", "3"], ["--lists", "x"], ["--lists", "0"], ["--rounds", "0"]]
)
def test_the_sampler_benchmark_refuses_nonsense_too(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        sampler.main(arguments)
    assert stopped.value.code == 2
