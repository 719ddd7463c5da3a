"""Which lists are learnt from: composed of what the policy wrote, best first, apart."""

import math

import pytest
import torch

from engine.formats.prompt import Prompt
from train.alignment.preferences import (
    Preference,
    composed,
    drawn_texts,
    prefer,
    prefer_texts,
    reward_of,
    searched_texts,
)
from train.alignment.prompts import AlignmentPrompt
from train.alignment.rollouts import Drawn, Worth
from train.generation.sampler import ListPrompt
from train.settings import ScenarioConfig

SUGGESTION = ScenarioConfig(name="suggestion", description="next", num_suggestions=3, num_slots=3)
ASKING = ScenarioConfig(
    name="clarification", description="asks", num_suggestions=3, num_slots=3,
    has_auxiliary_text=True,
)  # fmt: skip
SEEN = [1.0, 0.5, 0.25]


def drawn(texts_KS, scenario=SUGGESTION, auxiliary_K=None) -> Drawn:
    """Lists whose sequence s of draw k is the single id 1000 + 10 k + s, of log pi -k."""
    num_lists, num_slots = len(texts_KS), len(texts_KS[0])
    ids_KS = 1000 + 10 * torch.arange(num_lists)[:, None] + torch.arange(num_slots)
    prompt = AlignmentPrompt(
        scenario.spec([]),
        "query",
        [],
        True,
        Prompt([1], (0, 1), None),
        ListPrompt([1], [2] * num_slots, [4] * num_slots, (0, 1)),
    )
    texts = [[[t] if t else [] for t in texts_S] for texts_S in texts_KS]
    logprobs_KS = -torch.arange(num_lists, dtype=torch.float32)[:, None].expand(-1, num_slots)
    return Drawn(prompt, ids_KS[:, :, None], logprobs_KS, texts, auxiliary_K or [""] * num_lists)


def worth(values) -> Worth:
    return Worth(values, values, dict.fromkeys(values, True))


def preferred(pool: Drawn, values, num_kept: int = 9, min_gap: float = 0.01) -> Preference | None:
    """What is learnt from; the bytes of an id are its text's."""
    text_of = {
        int(pool.ids_KSN[k, s, 0]): texts[0]
        for k, texts_S in enumerate(pool.texts_KS)
        for s, texts in enumerate(texts_S)
        if texts
    }

    def bytes_of(ids) -> bytes:
        return "".join(text_of[i] for i in ids).encode()

    return prefer(
        pool, worth(values), SEEN, bytes_of, confidence=1.0, num_kept=num_kept, min_gap=min_gap
    )


def ids_of(preference: Preference | None) -> list[list[int]]:
    assert preference is not None
    return preference.ids_JSN[:, :, 0].tolist()


POOL = drawn([["f", "b", "c"], ["d", "e", "a"], ["g", "h", ""]])
VALUES = {"a": 0.3, "b": 0.01, "c": 0.1, "d": 0.08, "e": 0.2, "f": 0.05, "g": 0.02, "h": 0.03}


def test_the_best_texts_of_all_draws_make_the_best_list_in_bytewise_order() -> None:
    found = preferred(POOL, VALUES)
    assert ids_of(found)[0] == [1012, 1002, 1011]  # a, c, e
    assert found is not None
    assert found.reward_J[0].item() == pytest.approx(0.3 + 0.5 * 0.2 + 0.25 * 0.1)


def test_the_worst_texts_make_the_worst_list_spread_over_the_slots() -> None:
    worst = ids_of(preferred(POOL, VALUES))[-1]
    assert worst == [1001, 0, 1020]  # b and g: the slot between them is not used


def test_drawn_lists_stand_between() -> None:
    every = ids_of(preferred(POOL, VALUES))
    assert [1010, 1011, 1012] in every[1:-1]
    found = preferred(POOL, VALUES)
    assert found is not None
    rewards = found.reward_J.tolist()
    assert rewards == sorted(rewards, reverse=True)
    assert len(set(rewards)) == len(rewards)


def test_a_drawn_list_that_repeats_itself_is_worse_than_one_that_does_not() -> None:
    pool = drawn([["same", "same", "same"], ["same", "x", "y"]])
    found = preferred(pool, {"same": 0.5, "x": 0.1, "y": 0.3})
    assert ids_of(found) == [[1010, 1011, 1012], [1000, 1001, 1002]]


def test_similar_texts_do_not_share_a_list_if_others_are_left() -> None:
    values = {"cheap red shoes": 0.5, "red shoes cheap": 0.49, "boots": 0.1, "hats": 0.1}
    pool = drawn([["cheap red shoes", "red shoes cheap", "boots"], ["hats", "", ""]])
    best, rest = composed(pool, worth(values), lambda ids: bytes(str(ids), "ascii"), 1.0)
    assert sorted(best) == ["boots", "cheap red shoes", "hats"]
    assert rest == ["red shoes cheap"]


def test_what_the_policy_writes_often_stays_before_a_rare_text_that_is_slightly_better() -> None:
    pool = drawn([["often", "b", "c"], ["often", "rare", "e"], ["often", "h", ""]])
    values = {"often": 0.2, "rare": 0.25, "b": 0.1, "c": 0.1, "e": 0.1, "h": 0.1}

    def first_two(rare: float, confidence: float) -> list[str]:
        lists = composed(pool, worth({**values, "rare": rare}), lambda ids: b"", confidence)
        return lists[0][:2]

    assert first_two(0.25, 1.0) == ["often", "rare"]
    assert first_two(0.7, 1.0) == ["rare", "often"]
    assert first_two(0.25, 0.0) == ["rare", "often"]


def test_the_likeliest_complete_auxiliary_text_goes_with_composed_lists() -> None:
    pool = drawn([["", "b", "c"], ["", "d", "e"], ["", "f", "a"]], ASKING, ["", "which?", "what?"])
    pool = pool._replace(texts_KS=[[[], *texts_S[1:]] for texts_S in pool.texts_KS])
    best = ids_of(preferred(pool, VALUES))[0]
    assert best == [1010, 1022, 1012]  # a and e, with the question of the second draw


def test_prompts_whose_lists_are_worth_the_same_are_left_out() -> None:
    pool = drawn([["a", "b", "c"], ["c", "a", "b"]])
    assert preferred(pool, dict.fromkeys(VALUES, 0.2)) is None
    nothing = drawn([["", "", ""], ["", "", ""]])
    assert preferred(nothing, {}) is None


def test_as_many_lists_as_asked_for_and_as_differ() -> None:
    found = preferred(POOL, VALUES, num_kept=2)
    assert found is not None
    assert ids_of(found) == [ids_of(preferred(POOL, VALUES))[i] for i in (0, -1)]
    apart = preferred(POOL, VALUES, min_gap=0.6)
    assert apart is not None
    assert len(apart.reward_J) == 2
    assert apart.reward_J[0] - apart.reward_J[1] >= 0.6 * apart.reward_J[0]


def test_lists_in_list_form_are_taken_as_they_were_drawn() -> None:
    pool = drawn([["d"], ["a"], ["g"]])
    pool = pool._replace(texts_KS=[[["d", "b"]], [["a"]], [["g"]]])
    assert ids_of(preferred(pool, VALUES)) == [[1010], [1000], [1020]]
    assert drawn_texts(pool, 0) == ["d", "b"]
    assert reward_of(pool.prompt, VALUES, SEEN, ["b", "d"]) == pytest.approx(0.08 + 0.005)


def in_beams(texts_KS, scenario=SUGGESTION, auxiliary_K=None) -> Drawn:
    """Lists in beam form: the sequences of one search start alike."""
    pool = drawn(texts_KS, scenario, auxiliary_K)
    first = int(scenario.has_auxiliary_text)
    slots = [9] * first + [2] * (len(texts_KS[0]) - first)
    limits = [7] * first + [4] * (len(texts_KS[0]) - first)
    asked = pool.prompt.drawn._replace(slots=slots, max_new_tokens=limits)
    return pool._replace(prompt=pool.prompt._replace(drawn=asked))


def ordered(pool: Drawn, values, confidence: float, num_kept: int = 9) -> Preference:
    found = prefer_texts(
        pool, worth(values), confidence=confidence, num_kept=num_kept, min_gap=0.01
    )
    assert found is not None
    return found


def test_texts_in_beam_form_are_put_in_order_one_by_one() -> None:
    found = ordered(in_beams([["f", "b", "c"], ["d", "e", "a"]]), VALUES, confidence=0.0)
    assert ids_of(found) == [[1012], [1011], [1002], [1010], [1000], [1001]]  # a e c d f b
    assert found.reward_J.tolist() == pytest.approx([0.3, 0.2, 0.1, 0.08, 0.05, 0.01])
    assert found.reference_JS[:, 0].tolist() == [-1, -1, 0, -1, 0, 0]  # of the draw of each
    assert found.prompt.drawn.slots == [2]
    assert found.prompt.drawn.max_new_tokens == [4]


def test_what_the_policy_is_surer_of_stays_before_a_text_that_is_slightly_better() -> None:
    pool = in_beams([["c", "d"], ["e", "a"]])  # log pi 0 and -1
    assert ids_of(ordered(pool, {**VALUES, "c": 0.15}, confidence=1.0))[:2] == [[1000], [1011]]
    found = ordered(pool, VALUES, confidence=1.0)
    assert ids_of(found)[0] == [1011]  # a: .3 / e > .1
    assert found.reward_J[0].item() == pytest.approx(0.3 * math.exp(-1))


def test_texts_of_a_search_are_chosen_as_they_are_learnt() -> None:
    """Each is there once, so only its probability says what the policy is sure of."""
    pool = in_beams([["c", "d"], ["e", "a"]])
    for confidence in (0.0, 0.5, 3.0):
        learnt = ordered(pool, VALUES, confidence)
        found = searched_texts(pool, worth(VALUES), confidence)
        place_of = {"c": 1000, "d": 1001, "e": 1010, "a": 1011}
        assert [[place_of[text]] for text, _ in found] == ids_of(learnt)
        assert [added for _, added in found] == pytest.approx(learnt.reward_J.tolist())
    assert [text for text, _ in searched_texts(pool, worth(VALUES), 3.0)] == ["c", "d", "a", "e"]


def test_a_text_in_beam_form_is_worth_what_it_adds() -> None:
    pool = in_beams([["cheap red shoes", "red shoes cheap", "boots"]])
    values = {"cheap red shoes": 0.5, "red shoes cheap": 0.49, "boots": 0.1}
    assert ids_of(ordered(pool, values, confidence=0.0)) == [[1000], [1002], [1001]]


def test_the_auxiliary_text_goes_with_the_best_text_alone() -> None:
    pool = in_beams([["", "b", "c"], ["", "d", "e"]], ASKING, ["which?", ""])
    pool = pool._replace(texts_KS=[[[], *texts_S[1:]] for texts_S in pool.texts_KS])
    found = ordered(pool, VALUES, confidence=0.0, num_kept=2)
    assert ids_of(found) == [[1000, 1012], [0, 1001]]  # e with its question, b
    assert found.prompt.drawn.slots == [9, 2]
    assert found.prompt.drawn.max_new_tokens == [7, 4]


def test_texts_of_equal_worth_have_no_order() -> None:
    pool = in_beams([["a", "b", "c"]])
    equal = dict.fromkeys(VALUES, 0.2)
    assert prefer_texts(pool, worth(equal), confidence=0.0, num_kept=9, min_gap=0.01) is None
    nothing = in_beams([["", "", ""]])
    assert prefer_texts(nothing, worth({}), confidence=0.0, num_kept=9, min_gap=0.01) is None
