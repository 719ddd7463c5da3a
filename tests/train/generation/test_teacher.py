"""Lists of a teacher: which are learnt from, what is refused, and what a checkpoint writes."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.formats.manifest import ScenarioSpec
from tests.train.conftest import topic_queries, write_mined
from train.generation import teacher
from train.generation.generator import train_generator
from train.generation.teacher import read_lists, write_lists
from train.mining.anonymity import TextFilter
from train.mining.mine import CONTEXTS, QUERIES
from train.models.backbone import shapes_of
from train.settings import GeneratorConfig, default_scenarios

LATE = topic_queries()[5][0]
SCENARIOS: list[ScenarioSpec] = [s.spec([1.0, 0.5]) for s in default_scenarios()]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Tables in which all queries but that of LATE were searched before the cut."""
    run = tmp_path / "run"
    write_mined(run)
    queries = pq.read_table(run / "mined" / QUERIES)
    early = [0 if text == LATE else 5 for text in queries["text"].to_pylist()]
    place = queries.schema.get_field_index("num_searches_before_cut")
    queries = queries.set_column(place, "num_searches_before_cut", pa.array(early))
    pq.write_table(queries, run / "mined" / QUERIES)
    held_out = pq.read_table(run / "mined" / CONTEXTS)
    steps = [
        {"query": q, "target": queries[(i + 1) % len(queries)], "session_queries": []}
        for queries in topic_queries()
        for i, q in enumerate(queries)
        if LATE not in (q, queries[(i + 1) % len(queries)])
    ]
    rows = pa.Table.from_pylist([{**r, "weight": 1.0, "split": "train"} for r in steps])
    both = pa.concat_tables([held_out, rows.select(held_out.column_names).cast(held_out.schema)])
    pq.write_table(both, run / "mined" / CONTEXTS)
    return run


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = dict.fromkeys(name for r in rows for name in r)
    pq.write_table(pa.table({n: [r.get(n) for r in rows] for n in names}), path)
    return path


def row(scenario: str, query: str, *suggestions: str | None, **more: Any) -> dict[str, Any]:
    return {"scenario": scenario, "query": query, "suggestions": list(suggestions), **more}


def test_lists_for_known_queries_become_examples_and_others_are_counted(run: Path) -> None:
    query = topic_queries()[0][0]
    path = written(
        run / "lists.parquet",
        [
            row("suggestion", f" {query.upper()} ", "New Text", "new, text", query, "b", None),
            row("suggestion", "someone's own words", "a text"),
            row("suggestion", LATE, "a text"),
            row("panel of another team", query, "a text"),
            row("suggestion", query, "write to a.b@example.org", "call 212 555 0143 99"),
            row("clarification", query, "one", "two", auxiliary_text="Which  One?"),
        ],
    )
    found = read_lists(path, run / "mined", SCENARIOS, TextFilter())
    assert [(s.scenario, s.query, s.wanted, s.auxiliary_text) for s in found.sources] == [
        ("suggestion", query, ("new text", "b"), None),
        ("clarification", query, ("one", "two"), "which one?"),
    ]
    assert found.left_out == {"nothing_usable": 1, "query_not_in_log": 2, "unknown_scenario": 1}


def test_completions_go_on_from_what_was_typed_if_a_known_query_does(run: Path) -> None:
    query = topic_queries()[3][1]
    typed = query[:4]
    path = written(
        run / "lists.parquet",
        [
            row("completion", typed, f"{typed}x new", "something else", query),
            row("completion", f"{typed}x", f"{typed}xyz"),
        ],
    )
    found = read_lists(path, run / "mined", SCENARIOS, TextFilter())
    (source,) = found.sources
    assert (source.query, source.wanted) == (typed, (f"{typed}x new", query))
    assert source.is_typed
    assert found.left_out == {"query_not_in_log": 1}


def test_unsafe_words_of_a_teacher_are_refused(run: Path) -> None:
    query = topic_queries()[0][0]
    path = written(run / "lists.parquet", [row("suggestion", query, "a bad word", "a good one")])
    (source,) = read_lists(path, run / "mined", SCENARIOS, TextFilter(["bad"])).sources
    assert source.wanted == ("a good one",)


def test_a_table_of_another_form_is_refused_with_what_is_wanted(run: Path) -> None:
    path = written(run / "lists.parquet", [{"query": "a", "suggestions": "b", "scenario": 1}])
    with pytest.raises(ValueError, match="scenario is int64, suggestions is string; wanted are"):
        read_lists(path, run / "mined", SCENARIOS, TextFilter())
    with pytest.raises(ValueError, match="query is missing"):
        read_lists(
            written(path, [{"scenario": "a", "suggestions": ["b"]}]),
            run / "mined",
            SCENARIOS,
            TextFilter(),
        )
    path.write_text("scenario,query\n")
    with pytest.raises(ValueError, match="cannot be read"):
        read_lists(path, run / "mined", SCENARIOS, TextFilter())


def test_a_generator_learns_what_only_its_teacher_says(run: Path, tmp_path: Path) -> None:
    """The teacher's lists are what validation asks for and the log never shows."""
    rows = [
        row("suggestion", q, queries[(i + 2) % len(queries)])
        for queries in topic_queries()
        for i, q in enumerate(queries)
        if q != LATE
    ]
    path = written(run / "lists.parquet", rows)
    lists = read_lists(path, run / "mined", SCENARIOS, TextFilter()).sources
    config = GeneratorConfig(num_epochs=8, batch_size=16)
    shape = shapes_of("tiny").generator
    taught = train_generator(
        run, config, shape=shape, seed=0, output=tmp_path / "taught", teacher=lists
    )
    # As many steps without a teacher.
    num_epochs = 8 * taught.num_sources / (taught.num_sources - len(lists))
    untaught = train_generator(
        run, msgspec.structs.replace(config, num_epochs=num_epochs), shape=shape, seed=0,
        output=tmp_path / "alone",
    )  # fmt: skip
    assert taught.num_steps == untaught.num_steps
    print(taught.valid_loss, untaught.valid_loss)
    assert taught.valid_loss["suggestion"] < 0.9 * untaught.valid_loss["suggestion"]


def test_a_checkpoint_writes_lists_that_can_be_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_asked: list[tuple[str, str]] = []

    def echoed(_: str, asked: list[tuple[str, str]], *__: Any, kept: Path, **___: Any) -> Any:
        all_asked.extend(asked)
        kept.write_text(json.dumps(asked))
        return [[f"{query} more"] if i else [] for i, (_, query) in enumerate(asked)]

    monkeypatch.setattr(teacher, "prompted_texts", echoed)
    out = tmp_path / "lists.parquet"
    num = write_lists(
        "some checkpoint", run / "mined", SCENARIOS, out, num_lists=150, seed=0, report=print
    )
    # Of 50 prefixes, some are the same.
    assert 100 < len(all_asked) < 150
    assert len(set(all_asked)) == len(all_asked)
    assert num == len(all_asked) - 1
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["lists.parquet"]
    found = read_lists(out, run / "mined", SCENARIOS, TextFilter())
    assert len(found.sources) == num
    assert not found.left_out
    assert {s.scenario for s in found.sources} == {s.name for s in SCENARIOS}
    with pytest.raises(ValueError, match="is there already"):
        write_lists("c", run / "mined", SCENARIOS, out, num_lists=3, seed=0, report=print)
