"""The command line of the load generator, and the files that it reads."""

import gzip
from pathlib import Path

import pytest

from benchmarks.load.arguments import parse
from benchmarks.load.arrivals import due_s
from benchmarks.load.settings import Load


def parsed(tmp_path: Path, content: str | bytes, *arguments: str) -> Load:
    queries = tmp_path / "queries.txt"
    queries.write_bytes(content if isinstance(content, bytes) else content.encode())
    return parse([f"--queries={queries}", *arguments]).load


def test_a_replay_goes_to_the_end_of_its_file(tmp_path):
    load = parsed(tmp_path, "10\tfirst\n250\tlast\n", "--replay", "--speed=2")
    assert load.duration_s == 120
    assert due_s(load).tolist() == [0, 120]


def test_order_keeps_what_repeats_in_the_file(tmp_path):
    content = "shoes\nhats\nshoes\n"
    assert parsed(tmp_path, content, "--prompts=order").queries == ("shoes", "hats", "shoes")
    assert parsed(tmp_path, content).queries == ("shoes", "hats")


def test_a_line_ends_at_its_line_feed_and_a_byte_order_mark_is_no_text(tmp_path):
    content = "\ufeffred\u2028shoes\r\n\nhats\x0b2\n"
    assert parsed(tmp_path, content).queries == ("red\u2028shoes", "hats\x0b2")
    assert parsed(tmp_path, "\ufeff1\tshoes\n", "--replay").queries == ("shoes",)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--idle", "--rate=100000", "--duration=3600"],
        ["--rate=1", "--burst=1000:60:1", "--duration=7200"],
        ["--rate=1", "--ramp-to=200", "--duration=15000"],
    ],
)
def test_what_counts_is_how_many_requests_are_due(tmp_path, arguments):
    parsed(tmp_path, "shoes\n", *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\tshoes\n\n2\n", "line 3: --replay needs SECONDS<tab>QUERY, and no query follows"),
        ("1\tshoes\n\nhats\t2\n", "line 3: --replay needs SECONDS<tab>QUERY, and 'hats' is no"),
        ("5\tshoes\n4\that\n", "by rising time, and 4 comes after 5"),
        (gzip.compress(b"shoes\n" * 1000)[:-9], "is no whole gzip file"),
        (gzip.compress(b"shoes\n" * 1000)[:12] + b"x" * 20, "is no whole gzip file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_its_own_words(tmp_path, capsys, content, message):
    suffix = ".gz" if isinstance(content, bytes) else ".tsv"
    queries = tmp_path / f"queries{suffix}"
    queries.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit):
        parse([f"--queries={queries}", "--replay"])
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate=0"], "--rate is 0.0; it must be above 0"),
        (["--rate=nan"], "--rate is nan"),
        (["--rate=-5"], "--rate is -5.0"),
        (["--rate=1e9"], "at most 100000 requests a second"),
        (["--rate=100000", "--duration=3600"], "360000000 requests are asked for"),
        (["--duration=0"], "--duration is 0.0"),
        (["--duration=inf"], "--duration is inf"),
        (["--budget-ms=-1"], "--budget-ms is -1.0"),
        (["--deadline-ms=10"], "--deadline-ms is 10.0, below --budget-ms"),
        (["--connections=0"], "--connections is 0"),
        (["--scenarios=suggestion=-1"], "--scenarios has 'suggestion=-1'"),
        (["--scenarios="], "--scenarios has ''"),
        (["--ramp-to=0"], "--ramp-to is 0.0"),
        (["--burst=5"], "--burst is '5'; write RATE:EVERY:LENGTH"),
        (["--burst=5:1:2"], "--burst has a length that is 2.0"),
        (["--burst=200:60:1"], "--burst comes after 59 seconds for the first time"),
        (["--burst=5:1e-5:1e-6"], "at most 1000000 bursts"),
        (["--target=https://host:1"], "--target is https://host:1; write HOST:PORT, with --tls"),
        (["--tls=nowhere.pem"], "--tls cannot be read"),
        (["--metadata=token"], "--metadata is 'token'; write KEY=VALUE"),
        (["--out=nowhere/run.json"], "--out nowhere/run.json cannot be written"),
        (["--html=."], "--html . cannot be written"),
        (["--zipf=0"], "--zipf is 0.0"),
        (["--replay"], "--queries line 1: --replay needs SECONDS<tab>QUERY, and 'shoes' is no"),
        (["--replay", "--speed=0"], "--speed is 0.0"),
        (["--queries=nowhere.txt"], "--queries cannot be read"),
        (["--queries=/dev/null"], "--queries has no query"),
    ],
)
def test_a_load_of_nonsense_is_refused_with_what_would_be_right(
    tmp_path, capsys, arguments, message
):
    queries = tmp_path / "queries.txt"
    queries.write_text("shoes\n")

    with pytest.raises(SystemExit) as refusal:
        parse([f"--queries={queries}", *arguments])

    assert refusal.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
