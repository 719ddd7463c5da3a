"""What the mined tables of a log teach the generator."""

import random
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.formats.manifest import PromptSpec, ScenarioSpec
from engine.formats.prompt import COOCCURRING, SESSION
from engine.formats.text import match_key
from tests.train.conftest import IMPRESSION_SCHEMA
from tests.train.generation.conftest import SCENARIOS, configured
from train.config import read_config
from train.generation.associations import Associations
from train.generation.examples import (
    ExampleConfig,
    ExampleMaker,
    _contexts,  # pyright: ignore[reportPrivateUsage]
    read_clicks,
    read_sources,
)
from train.generation.generator import RunPrompts, example_maker
from train.mining.mine import CONTEXTS, QUERIES, mine
from train.mining.mine import PAIRS as MINED_PAIRS
from train.mining.shown import IMPRESSIONS
from train.settings import GeneratorConfig


@pytest.fixture(scope="module")
def mined_logs(simulated_logs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "mined"
    mine(
        read_config(None, size="tiny"),
        searches=str(simulated_logs.searches),
        impressions=str(simulated_logs.impressions),
        out=out,
        report=lambda _: None,
    )
    return out


def logged(mined: Path) -> ExampleConfig:
    content = (mined / "scenarios.json").read_bytes()
    scenarios = msgspec.json.decode(content, type=list[ScenarioSpec])
    prompt = PromptSpec(side_information_kinds=[SESSION, COOCCURRING])
    return ExampleConfig(
        scenarios=scenarios, prompt=prompt, cold_share=0.3, max_contexts_per_query=8
    )


def test_all_scenarios_get_examples_from_the_log_in_a_fixed_order(mined_logs: Path) -> None:
    config = logged(mined_logs)
    sources = read_sources(mined_logs, config, "train", seed=1)
    assert {s.scenario for s in sources} == {"suggestion", "completion", "clarification"}
    assert sources == read_sources(mined_logs, config, "train", seed=1)
    assert sources != read_sources(mined_logs, config, "train", seed=2)
    maker = ExampleMaker(config, Associations.load(mined_logs))
    for item in sources[:200]:
        example = maker(item, random.Random(0))
        assert example is None or match_key(example.query) not in map(
            match_key, example.suggestions
        )


def test_every_query_of_the_training_time_is_completed_once_alone(mined_logs: Path) -> None:
    config = logged(mined_logs)
    queries = pq.read_table(mined_logs / QUERIES).to_pylist()
    alone = [
        s.query
        for s in read_sources(mined_logs, config, "train", seed=1)
        if s.scenario == "completion" and not s.session_queries and not s.is_typed
    ]
    early = [q["text"] for q in queries if q["num_searches_before_cut"] and len(q["text"]) > 1]
    assert sorted(alone) == early
    # Held-out sources are those of the held-out time alone.
    assert not any(
        s.scenario == "completion" and not s.session_queries and not s.is_typed
        for s in read_sources(mined_logs, config, "valid", seed=1)
    )


def write_tables(
    mined: Path, before_cut: dict[str, int], pairs: list[Any], steps: list[Any]
) -> None:
    """Writes mined tables: pairs of (source, target), steps of (query, target, split)."""
    mined.mkdir(parents=True)
    columns = {"text": [*before_cut], "num_searches": [9] * len(before_cut)}
    counted = {"num_searches_before_cut": [*before_cut.values()]}
    pq.write_table(pa.table({**columns, **counted}), mined / QUERIES)
    ends = [{"source": s, "target": t} for s, t in pairs]
    counted = {"num_pairs": 9, "num_users": 9, "association": 0.5}
    pq.write_table(pa.Table.from_pylist([{**e, **counted} for e in ends]), mined / MINED_PAIRS)
    rows = [
        {"query": q, "target": t, "session_queries": [], "weight": 1.0, "split": split}
        for q, t, split in steps
    ]
    pq.write_table(pa.Table.from_pylist(rows), mined / CONTEXTS)


def test_queries_after_the_cut_alone_are_in_no_example_of_the_training(tmp_path: Path) -> None:
    mined = tmp_path / "mined"
    write_tables(
        mined,
        {"abc early": 9, "abc late": 0, "abc lonely": 1, "abd early": 9, "abe": 9},
        # The first search of a session may be before the cut, and the next one after it.
        [("abd early", "abc late"), ("abd early", "abe"), ("abc early", "abd early")],
        [("abc early", "abd early", "train"), ("abd early", "abc late", "valid")],
    )
    prompt = PromptSpec(side_information_kinds=[SESSION, COOCCURRING])
    prompts = RunPrompts(SCENARIOS, prompt, None)  # pyright: ignore[reportArgumentType]
    maker = example_maker(mined, GeneratorConfig(), prompts, max_edges=32)
    taught = set[str]()
    for number, item in enumerate(40 * read_sources(mined, maker.config, "train", seed=0)):
        example = maker(item, random.Random(number))
        if example is not None:
            taught |= {
                item.query,
                *example.suggestions,
                *(i.text for i in example.side_information),
            }
    assert taught == {"abc early", "abc lonely", "abd early", "abe"}
    # What is served knows all queries of the index.
    assert "abc late" in Associations.load(mined).starting_with("abc", 9)


def test_a_pair_of_a_query_that_was_not_mined_is_told_without_its_text(tmp_path: Path) -> None:
    write_tables(tmp_path / "mined", {"tea": 1}, [("tea", "a secret")], [("tea", "tea", "valid")])
    with pytest.raises(
        ValueError, match=r"the query 8 characters long that queries\.parquet lacks"
    ):
        Associations.load(tmp_path / "mined")


def test_what_followed_is_ordered_by_all_that_is_told_of_a_context(tmp_path: Path) -> None:
    """Sessions that differ in repetitions alone are one context."""
    rows = [
        ("tea", ["pot", "cup"], "kettle", 3),
        ("tea", ["pot", "cup"], "green tea", 2),
        ("tea", ["cup", "pot", "tea", "cup"], "green tea", 2),
    ]
    columns = ("query", "session_queries", "target", "weight")
    table = pa.Table.from_pylist(
        [{**dict(zip(columns, r, strict=True)), "split": "train"} for r in rows]
    )
    pq.write_table(table, tmp_path / CONTEXTS)
    assert _contexts(tmp_path, configured(), "train") == [
        (("tea", ("pot", "cup")), ["green tea", "kettle"])
    ]


def test_head_queries_are_capped(mined_logs: Path) -> None:
    sources = read_sources(mined_logs, logged(mined_logs), "train", seed=1)
    of_head = [s for s in sources if (s.scenario, s.query) == ("suggestion", "laptop")]
    assert len(of_head) <= 16  # 8 from sessions, 8 from clicks


def test_of_a_head_query_the_newest_panels_are_kept(tmp_path: Path) -> None:
    mined = tmp_path / "mined"
    write_tables(mined, {"tea": 9}, [], [("tea", "tea", "valid")])
    # Ids that sort in the order of their time, as they often do.
    rows = [
        {
            "request_id": f"{minute:03}",
            "time": datetime(2026, 1, 1, 0, minute),
            "scenario": "suggestion",
            "query": query,
            "side_information": [],
            "position": 1,
            "text": f"{query} {minute}",
            "clicked": minute != 7,
            "split": "train",
        }
        for minute, query in enumerate(["rare", *["tea"] * 7])
    ]
    pq.write_table(pa.Table.from_pylist(rows, IMPRESSION_SCHEMA), mined / IMPRESSIONS)
    config = replace(configured(), max_contexts_per_query=2)
    clicked = [s.wanted for s in read_sources(mined, config, "train", seed=0) if s.is_clicked]
    assert sorted(clicked) == [("rare 0",), ("tea 5",), ("tea 6",)]


def test_clicks_of_completion_do_not_rank_suggestions(mined_logs: Path) -> None:
    clicks = read_clicks(mined_logs, "train", logged(mined_logs).scenarios)
    assert clicks
    known = Associations.load(mined_logs)
    assert {c.query for c in clicks} <= set(known.texts)  # no typed prefixes
    assert all(0 < c.num_clicks <= c.num_seen for c in clicks)
