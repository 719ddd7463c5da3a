"""What drawn lists say, and what their texts are worth."""

import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.formats.prompt import SESSION, SideInformation
from engine.formats.vocabulary import EOS_ID, SEP_ID
from train.alignment.prompts import PromptSource, render
from train.alignment.rollouts import Drawer, judge_lists, read_lists, shared_trigrams
from train.clicks.judge import Judged, Judgement
from train.generation.generator import RunPrompts, read_prompts
from train.generation.sampler import Lists


@pytest.fixture(scope="module")
def prompts(trained_run: Path) -> RunPrompts:
    return read_prompts(trained_run)


def lists_of(prompts: RunPrompts, texts: list[str | None], *, num_new: int = 16) -> Lists:
    """One list of one prompt; None is a text that does not end."""
    encode = prompts.renderer.vocabulary.encode
    lists = Lists.empty(1, 1, len(texts), num_new)
    for s, text in enumerate(texts):
        ids = [*encode(text), EOS_ID] if text is not None else encode("bimaba") * 16
        lists.ids[0, 0, s, : min(len(ids), num_new)] = torch.tensor(ids[:num_new])
    return lists


def read(prompts: RunPrompts, scenario: str, query: str, texts: list[str | None]):
    prompt = render(prompts, "slots", scenario, query, [])
    (drawn,) = read_lists(
        prompts.renderer.vocabulary, [prompt], lists_of(prompts, texts), is_list=False
    )
    return drawn


def test_each_slot_gives_its_text_and_a_text_that_was_cut_gives_none(prompts) -> None:
    drawn = read(prompts, "suggestion", "bimaba", ["dugira bimaba", None, "  fugira ", ""])
    assert drawn.texts_KS == [[["dugira bimaba"], [], ["fugira"], []]]
    assert drawn.auxiliary_K == [""]


def test_the_auxiliary_text_is_apart(prompts) -> None:
    drawn = read(prompts, "clarification", "bimaba", ["which dugira?", "fugira", "gugira"])
    assert drawn.auxiliary_K == ["which dugira?"]
    assert drawn.texts_KS == [[[], ["fugira"], ["gugira"]]]


def test_every_seed_draws_other_lists(prompts, trained_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_run / "generator", dtype=torch.float32)
    draw = Drawer(prompts.renderer.vocabulary, mode="slots", bf16=False, seed=0)
    asked = [render(prompts, "slots", "suggestion", "bimaba", [])]
    drawn = [
        draw(model, asked, num_lists=4, seed=seed, temperature=1.0)[0].texts_KS
        for seed in (-2, -1, 0, 1)
    ]
    assert all(one != other for one, other in combinations(drawn, 2))
    assert draw(model, asked, num_lists=4, seed=1, temperature=1.0)[0].texts_KS == drawn[-1]


def test_a_list_in_list_form_is_parted(prompts) -> None:
    encode = prompts.renderer.vocabulary.encode
    ids = [*encode("which?"), SEP_ID, *encode("fugira"), SEP_ID, *encode("gugira"), EOS_ID]
    lists = Lists.empty(1, 1, 1, len(ids))
    lists.ids[0, 0, 0] = torch.tensor(ids)
    prompt = render(prompts, "list", "clarification", "bimaba", [])
    (drawn,) = read_lists(prompts.renderer.vocabulary, [prompt], lists, is_list=True)
    assert drawn.auxiliary_K == ["which?"]
    assert drawn.texts_KS == [[["fugira", "gugira"]]]


class Opinion:
    """A judge that finds every text likely, and is sure of half of that."""

    def __init__(self) -> None:
        self.asked: list[Judged] = []

    def __call__(self, questions, *, level):
        self.asked += questions
        p_of = [np.linspace(0.4, 0.5, len(q.texts), dtype=np.float64) for q in questions]
        return [Judgement(p_C, p_C / 2, np.ones(len(p_C), np.bool_)) for p_C in p_of]


def test_texts_are_judged_once_and_the_query_itself_is_worth_nothing(prompts) -> None:
    judge = Opinion()
    drawn = read(prompts, "suggestion", "bimaba", ["Bimaba", "fugira", "fugira", None])
    (worth,) = judge_lists(judge, [drawn], level=0, relevance_floor=0)
    assert judge.asked[0].texts == ["bimaba", "fugira"]
    assert judge.asked[0].is_cold
    assert worth.p_seen == pytest.approx({"bimaba": 0.0, "fugira": 0.5})
    assert worth.reward == worth.p_seen


def test_a_pessimist_is_paid_by_the_lower_bound_and_irrelevant_texts_not_at_all(prompts) -> None:
    drawn = read(prompts, "suggestion", "bimaba", ["bimaba fugira", "gugira"])
    (worth,) = judge_lists(Opinion(), [drawn], level=0.8, relevance_floor=0.3)
    assert worth.p_seen == pytest.approx({"bimaba fugira": 0.4, "gugira": 0.5})
    assert worth.reward == pytest.approx({"bimaba fugira": 0.2, "gugira": 0.0})


class Slopeless:
    """Prefers later texts in suggestions; in options only what the log knows to the rest."""

    def __call__(self, questions, *, level):
        judgements = []
        for asked in questions:
            is_known_C = np.arange(len(asked.texts)) < 2
            is_dull = asked.scenario == "clarification"
            p_C = np.array(np.where(is_known_C, 0.3, 0.1), np.float64)
            if not is_dull:
                p_C += 0.01 * np.arange(len(p_C))
            judgements.append(Judgement(p_C, p_C / 2, is_known_C))
        return judgements


def test_where_the_click_model_prefers_nothing_texts_are_worth_nothing(prompts) -> None:
    drawn = [
        read(prompts, "suggestion", "bimaba", ["dugira", "fugira", "gugira", None]),
        read(prompts, "clarification", "bimaba", [None, "dugira", "fugira", "gugira"]),
    ]
    judged, dull = judge_lists(Slopeless(), drawn, level=0, relevance_floor=0)
    assert len(judged.reward) > 2
    assert judged.reward == judged.p_seen
    assert len(dull.reward) > 2
    assert set(dull.reward.values()) == {0.0}
    assert set(dull.p_seen.values()) == {0.3, 0.1}


def test_shared_trigrams_by_hand() -> None:
    assert shared_trigrams("abc", ["abc"]) == 1.0
    assert shared_trigrams("abc", ["xyz"]) == 0.0
    # " ab", "abc", "bc " against " ab", "abd", "bd "
    assert shared_trigrams("abc", ["abd"]) == pytest.approx(1 / 3)
    assert shared_trigrams("abc", ["abd", "bc"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("learnt", "left"),
    [
        (slice(None, None, 2), slice(1, None, 2)),
        (slice(1, None), slice(None)),
        (slice(None), slice(None)),
    ],
    ids=["half", "all but one", "all"],
)
def test_what_was_asked_before_the_cut_too_is_not_held_out_unless_little_else_was(
    mined_run: Path, tmp_path: Path, prompts, learnt: slice, left: slice
) -> None:
    """Some of the held-out requests are also ones that are learnt from."""
    mined = Path(shutil.copytree(mined_run / "mined", tmp_path / "mined"))
    contexts = pq.read_table(mined / "contexts.parquet")
    queries = sorted(set(contexts["query"].to_pylist()))
    again = contexts.filter(pc.field("query").isin(queries[learnt]))
    again = again.set_column(
        again.column_names.index("split"), "split", pa.array(["train"] * len(again))
    )
    pq.write_table(pa.concat_tables([contexts, again]), mined / "contexts.parquet")
    source = PromptSource(mined, prompts, mode="slots", cold_share=1.0, max_edges=32, seed=0)
    drawn = source.draw("valid", 10_000, 0)
    held_out = {p.query for p in drawn if p.scenario.name == "suggestion"}
    assert held_out == set(queries[left])


def test_prompts_are_different_and_of_the_split_and_share_asked_for(
    trained_run: Path, prompts
) -> None:
    def source(cold_share: float) -> PromptSource:
        return PromptSource(
            trained_run / "mined",
            prompts,
            mode="slots",
            cold_share=cold_share,
            max_edges=32,
            seed=0,
        )

    cold = source(1.0).draw("train", 30, 0)
    assert len({tuple(p.drawn.ids) for p in cold}) == len(cold)
    assert all(p.is_cold for p in cold)
    warm = source(0.0).draw("train", 30, 0)
    assert not all(p.is_cold for p in warm)
    assert cold == source(1.0).draw("train", 30, 0)
    assert cold != source(1.0).draw("train", 30, 1)
    held_out = {(p.query, p.scenario.name) for p in source(1.0).draw("valid", 30, 0)}
    assert held_out
    side = [SideInformation(SESSION, "fugira")]
    assert render(prompts, "slots", "suggestion", "bimaba", side).side_information == side
