"""Held-out queries asked of a real engine, and the lists that come of it."""

import gzip
import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.heldout import run
from tests.conftest import LiveEngine

QUERIES = ["été", "äöü", "été à nice", "garden lamp for kids"]


async def test_every_query_is_asked_in_every_scenario_of_engine_and_generator(
    live_engine: LiveEngine, tiny_bundle: Path, tmp_path: Path
) -> None:
    heldout, out = tmp_path / "heldout.gz", tmp_path / "lists.jsonl"
    heldout.write_bytes(gzip.compress("\n".join(QUERIES).encode()))
    shares = await run(
        Namespace(
            heldout=heldout, num=2, seed=0, bundle=tiny_bundle, target=live_engine.target, out=out
        )
    )
    scenarios = ["suggestion", "completion", "clarification"]
    assert list(shares) == scenarios
    assert all(share["lacks_query"] == share["has_prefix"] == 1 for share in shares.values())
    lists = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    asked = {(made["scenario"], made["system"]): set() for made in lists}
    assert asked.keys() == {(s, system) for s in scenarios for system in ("engine", "generator")}
    for made in lists:
        asked[made["scenario"], made["system"]].add(made["query"])
    long = set(QUERIES[2:])
    assert asked["suggestion", "engine"] == asked["suggestion", "generator"] == long
    for prefix in asked["completion", "engine"]:
        assert any(query.startswith(prefix) for query in long)


async def test_fewer_queries_than_are_asked_for_are_an_error(
    live_engine: LiveEngine, tiny_bundle: Path, tmp_path: Path
) -> None:
    heldout, out = tmp_path / "heldout.gz", tmp_path / "lists.jsonl"
    heldout.write_bytes(gzip.compress("\n".join(QUERIES).encode()))
    arguments = Namespace(
        heldout=heldout, num=3, seed=0, bundle=tiny_bundle, target=live_engine.target, out=out
    )
    with pytest.raises(ValueError, match="has 2 queries of 4 characters to 200 bytes, --num is 3"):
        await run(arguments)
