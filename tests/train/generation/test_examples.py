import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.formats.manifest import PromptSpec, ScenarioSpec
from engine.formats.prompt import ANSWER, COOCCURRING, SESSION, SideInformation
from engine.formats.text import match_key
from tests.train.conftest import IMPRESSION_SCHEMA
from train.config import read_config
from train.generation.associations import Associations, Clicks
from train.generation.examples import (
    Example,
    ExampleConfig,
    ExampleMaker,
    Source,
    _contexts,  # pyright: ignore[reportPrivateUsage]
    read_clicks,
    read_sources,
)
from train.generation.generator import RunPrompts, example_maker
from train.mining.mine import CONTEXTS, QUERIES, mine
from train.mining.mine import PAIRS as MINED_PAIRS
from train.mining.shown import IMPRESSIONS
from train.retrieval.pairs import Pairs
from train.settings import GeneratorConfig, default_scenarios

SCENARIOS = [s.spec([1.0, 0.5]) for s in default_scenarios()]
SEARCHES = {
    "laptop": 100,
    "laptop bag": 50,
    "laptop-bag": 2,
    "laptop stand": 40,
    "gaming laptop": 30,
    "mouse": 20,
    "mouse pad": 10,
    "keyboard": 5,
}
PAIRS = [  # source, target, npmi, num_pairs, num_users
    ("laptop", "mouse", 0.5, 11, 10),  # 10 users * 0.5
    ("laptop", "laptop bag", 0.4, 40, 30),
    ("laptop", "keyboard", -0.1, 20, 20),
    ("laptop", "laptop-bag", 0.9, 2, 1),
    ("laptop", "gaming laptop", -0.1, 21, 20),
    ("gaming laptop", "mouse pad", 0.3, 7, 7),
]


def associations(clicks: Sequence[Clicks] = (), max_edges: int = 32) -> Associations:
    texts = sorted(SEARCHES, key=str.encode)
    counts = np.array([SEARCHES[t] for t in texts], np.int64)
    sources, targets, npmi, *counted = zip(*PAIRS, strict=True)
    pairs = Pairs(
        np.array([texts.index(t) for t in sources]),
        np.array([texts.index(t) for t in targets]),
        np.array(npmi, np.float32),
        *(np.array(column) for column in counted),
    )
    return Associations(texts, counts, pairs, clicks, max_edges=max_edges)


def configured(cold_share: float = 0.0, *, samples_completions: bool = False) -> ExampleConfig:
    prompt = PromptSpec(side_information_kinds=[SESSION, ANSWER, COOCCURRING])
    return ExampleConfig(
        scenarios=SCENARIOS,
        prompt=prompt,
        cold_share=cold_share,
        max_contexts_per_query=64,
        samples_completions=samples_completions,
    )


def made(source: Source, *, cold_share: float = 0.0, seed: int = 0) -> Example:
    example = ExampleMaker(configured(cold_share), associations())(source, random.Random(seed))
    assert example is not None
    return example


def source(scenario: str = "suggestion", query: str = "laptop", **changes: Any) -> Source:
    fields = {
        "scenario": scenario,
        "query": query,
        "session_queries": (),
        "further": (),
        "wanted": ("gaming laptop",),
        "auxiliary_text": None,
        "is_typed": False,
    }
    return Source(**{**fields, **changes})


def test_following_queries_are_ordered_as_the_index_has_them() -> None:
    """Best association first, then the pair that occurs more often."""
    served = ["laptop-bag", "mouse", "laptop bag", "gaming laptop", "keyboard"]
    assert associations().following("laptop") == served
    assert associations().following("laptop", 2) == served[:2]
    assert associations(max_edges=4).following("laptop", 9) == served[:4]
    assert associations().following("unknown", 9) == []


def test_recommended_queries_are_ordered_by_users_times_association() -> None:
    best = associations().best_next("laptop")
    assert [s.text for s in best] == ["laptop bag", "mouse", "laptop-bag"]
    assert [s.score for s in best] == pytest.approx([12, 5, 0.9])


def test_clicks_lift_a_text() -> None:
    clicks = [Clicks("laptop", "mouse", 40, 50), Clicks("laptop", "laptop stand", 2, 500)]
    best = [s.text for s in associations(clicks).best_next("laptop")]
    assert best[0] == "mouse"
    assert best.index("laptop stand") > best.index("laptop bag")


def test_completions_are_the_most_searched_with_the_prefix() -> None:
    known = associations()
    assert known.starting_with("laptop ", 2) == ["laptop bag", "laptop stand"]
    assert known.starting_with("m", 9) == ["mouse", "mouse pad"]
    assert known.starting_with("zz", 9) == []
    for prefix in ("", "l", "laptop", "mouse p"):
        expected = sorted(
            (t for t in SEARCHES if t.startswith(prefix)),
            key=lambda t: (-SEARCHES[t], t.encode()),
        )
        assert known.starting_with(prefix, 3) == expected[:3]


def test_sampled_completions_are_different_and_each_is_as_likely() -> None:
    known, rng = associations(), random.Random(0)
    matching = sorted(t for t in SEARCHES if t.startswith("l"))
    assert sorted(known.sample_starting_with("l", 99, rng)) == matching
    assert known.sample_starting_with("zz", 9, rng) == []
    drawn = Counter(t for _ in range(4000) for t in known.sample_starting_with("l", 1, rng))
    assert sorted(drawn) == matching
    assert min(drawn.values()) > 0.85 * 4000 / len(matching)


def test_similar_queries_share_words_and_are_others() -> None:
    similar = associations().similar("gaming laptop", 9)
    assert "gaming laptop" not in similar
    assert similar[0] == "laptop"
    assert "keyboard" not in similar
    assert associations().similar("gaming keyboard", 2) == ["keyboard", "gaming laptop"]


def test_queries_of_scripts_without_spaces_resemble_one_another() -> None:
    texts = sorted(["全自动咖啡机", "咖啡机", "咖啡豆", "手机壳"], key=str.encode)
    none = np.array([], np.int64)
    pairs = Pairs(none, none, np.array([], np.float32), none, none)
    known = Associations(texts, np.array([1, 1, 1, 1]), pairs)
    assert known.similar("咖啡机", 9) == ["全自动咖啡机", "咖啡豆"]
    assert known.specialisations("咖啡机", 9) == ["全自动咖啡机"]


def test_specialisations_add_words() -> None:
    found = associations().specialisations("laptop", 9)
    assert found == ["laptop bag", "laptop stand", "gaming laptop"]
    assert associations().specialisations("unheard of", 9) == []


def test_the_list_starts_with_what_the_user_wanted_and_repeats_nothing() -> None:
    example = made(source(session_queries=("mouse",)))
    assert example.suggestions[:2] == ["gaming laptop", "laptop bag"]
    keys = [match_key(t) for t in example.suggestions]
    assert len(set(keys)) == len(keys)
    assert not {"laptop", "mouse"} & set(keys)  # the query and the session


def test_a_query_without_followers_gets_what_resembles_it() -> None:
    example = made(source(query="laptop sleeve", wanted=()))
    assert "laptop" in example.suggestions


def test_nothing_to_suggest_is_no_example() -> None:
    maker = ExampleMaker(configured(), associations())
    assert maker(source(query="zzz", wanted=("zzz",)), random.Random(0)) is None


def test_completion_takes_a_proper_prefix_that_all_suggestions_start_with() -> None:
    lengths = set()
    for seed in range(40):
        example = made(source("completion", "laptop stand", wanted=("laptop stand",)), seed=seed)
        assert 1 <= len(example.query) < len("laptop stand")
        assert all(t.startswith(example.query) for t in example.suggestions)
        assert example.suggestions[0] == "laptop stand"
        assert match_key(example.query) not in map(match_key, example.suggestions)
        lengths.add(len(example.query))
    assert "laptop " in {
        made(source("completion", "laptop stand"), seed=s).query for s in range(40)
    }
    assert len(lengths) > 6


def test_a_typed_prefix_is_kept() -> None:
    typed = source("completion", "lap", wanted=("laptop stand",), is_typed=True)
    assert made(typed).query == "lap"
    assert made(typed).suggestions[:2] == ["laptop stand", "laptop"]


def test_what_else_completes_a_prefix_may_be_a_sample() -> None:
    typed = source("completion", "lap", wanted=("laptop stand",), is_typed=True)
    make = ExampleMaker(configured(samples_completions=True), associations())
    examples = [make(typed, random.Random(seed)) for seed in range(60)]
    assert all(e is not None and e.suggestions[0] == "laptop stand" for e in examples)
    second = {e.suggestions[1] for e in examples if e is not None}
    assert second == {t for t in SEARCHES if t.startswith("lap")} - {"laptop stand"}


def test_clarification_offers_what_narrows_the_query_down_first() -> None:
    example = made(source("clarification", wanted=(), auxiliary_text="which laptop?"))
    assert example.auxiliary_text == "which laptop?"
    assert example.suggestions[:3] == ["laptop bag", "laptop stand", "gaming laptop"]


def test_side_information_comes_with_what_matters_most_last() -> None:
    answer = SideInformation(ANSWER, "an answer")
    examples = [
        made(source(session_queries=("mouse", "keyboard"), further=(answer,)), seed=seed)
        for seed in range(20)
    ]
    for example in examples:
        kinds = [i.kind for i in example.side_information]
        order = [COOCCURRING, ANSWER, SESSION]
        assert kinds == sorted(kinds, key=order.index)
        assert [i.text for i in example.side_information[-2:]] == ["mouse", "keyboard"]
        assert "laptop" not in [i.text for i in example.side_information]
    found = {tuple(i.text for i in e.side_information if i.kind == COOCCURRING) for e in examples}
    assert len(found) > 1  # exact lists for some, those of similar queries for others


def test_a_share_of_examples_is_cold() -> None:
    assert made(source(), cold_share=1.0).side_information == []
    warm = [bool(made(source(), cold_share=0.3, seed=s).side_information) for s in range(200)]
    assert 0.6 < np.mean(warm) < 0.8


def test_completion_is_shown_what_starts_with_the_prefix() -> None:
    typed = source("completion", "mou", session_queries=("gaming laptop",), is_typed=True)
    texts = [i.text for i in made(typed).side_information if i.kind == COOCCURRING]
    # Best last: what followed the session's last query, before what is most searched.
    assert texts == ["mouse", "mouse pad"]


@pytest.mark.parametrize("scenario", ["suggestion", "completion", "clarification"])
def test_no_cooccurring_queries_are_shown_where_none_are_wanted(scenario: str) -> None:
    prompt = PromptSpec(side_information_kinds=[SESSION, COOCCURRING], max_cooccurring=0)
    maker = ExampleMaker(replace(configured(), prompt=prompt), associations())
    asked = source(scenario, wanted=("laptop stand",), session_queries=("gaming laptop",))
    for seed in range(30):
        example = maker(asked, random.Random(seed))
        assert example is None or {i.kind for i in example.side_information} == {SESSION}


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
