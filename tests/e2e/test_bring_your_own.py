"""From a file of session, time and query, and nothing else, to suggestions, by commands alone."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

NOUNS = [
    *("kettle", "bicycle", "garden", "paper", "lantern", "wool", "socks", "camera", "guitar"),
    *("blanket", "pepper", "mill", "ladder", "umbrella", "backpack", "mirror", "toaster"),
    *("puzzle", "helmet", "carpet", "hammock", "candle", "teapot", "notebook", "printer"),
    *("saddle", "violin", "compass", "sandal", "thermos"),
]
KINDS = ["blue", "solar", "second hand", "repair", "for children", "large", "cheap", "gift"]
TOPICS = {noun: [f"{noun} {kind}" for kind in KINDS] for noun in NOUNS}


def command(package: str, *arguments: object) -> str:
    """Runs a command in a process of its own; returns what it printed."""
    run = subprocess.run(
        [sys.executable, "-m", package, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def write_log(path: Path, *, num_sessions: int = 3000) -> None:
    rng = random.Random(0)
    time = 1_772_354_400
    with gzip.open(path, "wt") as stream:
        for session in range(num_sessions):
            topic = rng.choice(sorted(TOPICS))
            for query in [topic, *rng.sample(TOPICS[topic], 2)]:
                time += rng.randrange(5, 60)
                stream.write(f"s{session}\t{time}\t{query}\n")
        stream.write("s0\tsome time later\tbroken line\n")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_commands_lead_from_searches_alone_to_a_served_bundle(
    tmp_path, start_engine, stop_engine
):
    log, logs, run, bundle = (tmp_path / n for n in ("my.tsv.gz", "logs", "run", "bundle"))
    write_log(log)

    imported = command("train", "import", "tsv", log, "--out", logs)
    trained = command("train", "run", "--logs", logs, "--run", run, "--size", "tiny")
    command("export", "bundle", "--run", run, "--out", bundle)

    assert "9000 searches" in imported
    assert "1 time cannot be read (first at my.tsv.gz:9001)" in imported
    assert "a bundle has no click model" in imported
    assert "no click model, because the logs have no impressions" in trained
    assert f'searches = "{logs}/searches.parquet"' in (run / "config.toml").read_text()
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["click_model"] is None
    assert "click_model.onnx" not in os.listdir(bundle)

    engine = start_engine(bundle, tmp_path)
    try:
        asked = ("--target", engine.target, "--timeout-ms", 10_000)
        for scenario, query in (("suggestion", "kettle"), ("completion", "garden s")):
            printed = command("engine", "ask", query, "--scenario", scenario, *asked)
            known = [text for texts in TOPICS.values() for text in texts if text in printed]
            assert known, printed
    finally:
        assert stop_engine(engine) == 0
