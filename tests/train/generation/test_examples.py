"""Examples made of one source each, and the associations that fill them."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.formats.manifest import PromptSpec
from engine.formats.prompt import ANSWER, COOCCURRING, SESSION, SideInformation
from engine.formats.text import match_key
from tests.train.generation.conftest import configured
from train.generation.associations import Associations, Clicks
from train.generation.examples import Example, ExampleMaker, Source
from train.retrieval.pairs import Pairs

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
