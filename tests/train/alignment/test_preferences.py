"""Which lists are learnt from: composed of the policy's own sequences, best first, apart."""

import itertools

import pytest
import torch

from engine.prompt import Prompt
from train.alignment.preferences import prefer, reward_of
from train.alignment.prompts import AlignmentPrompt
from train.alignment.rollouts import Drawn, Worth
from train.config import ScenarioConfig
from train.generation.sampler import ListPrompt

SPEC = ScenarioConfig(name="suggestion", description="next", num_suggestions=3).spec([])
SEEN = [1.0, 0.5, 0.25]


def drawn(texts_KS, logprobs_KS):
    """Lists whose sequence s of draw k is the single id 1000 + 10 k + s."""
    num_lists, num_slots = len(texts_KS), len(texts_KS[0])
    ids = 1000 + 10 * torch.arange(num_lists)[:, None] + torch.arange(num_slots)
    prompt = AlignmentPrompt(
        SPEC,
        "query",
        [],
        True,
        Prompt([1], (0, 1), None),
        ListPrompt([1], [2] * num_slots, [4] * num_slots, (0, 1)),
    )
    texts = [[[t] if t else [] for t in texts_S] for texts_S in texts_KS]
    return Drawn(prompt, ids[:, :, None], torch.tensor(logprobs_KS), texts, [""] * num_lists)


def worth(values):
    return Worth(values, values, dict.fromkeys(values, True))


EXAMPLE = drawn(
    [["a", "b", "c"], ["d", "e", "f"], ["g", "h", ""]],
    [[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0], [-7.0, -8.0, -9.0]],
)
VALUES = {"a": 0.3, "b": 0.01, "c": 0.1, "d": 0.1, "e": 0.2, "f": 0.05, "g": 0.02, "h": 0.03}


def test_best_and_worst_list_take_the_best_and_the_worst_of_every_slot():
    found = prefer(EXAMPLE, worth(VALUES), SEEN, num_kept=3, min_gap=0.01)
    assert found is not None
    assert found.ids_JSN[0, :, 0].tolist() == [1000, 1011, 1002]  # a, e, c
    assert found.ids_JSN[-1, :, 0].tolist() == [1020, 1001, 1022]  # g, b and nothing
    assert found.reward_J[0].item() == pytest.approx(0.3 + 0.5 * 0.2 + 0.25 * 0.1)
    assert found.reward_J[-1].item() == pytest.approx(0.02 + 0.5 * 0.01)


def test_the_reference_goes_with_its_sequence():
    found = prefer(EXAMPLE, worth(VALUES), SEEN, num_kept=3, min_gap=0.01)
    assert found is not None
    assert found.reference_JS[0].tolist() == [-1.0, -5.0, -3.0]
    assert found.reference_JS[-1].tolist() == [-7.0, -2.0, -9.0]


def test_no_list_of_the_pool_is_worth_more_than_the_composed_one():
    found = prefer(EXAMPLE, worth(VALUES), SEEN, num_kept=2, min_gap=0.0)
    assert found is not None
    every = [
        reward_of(EXAMPLE, VALUES, SEEN, choice) for choice in itertools.product(range(3), repeat=3)
    ]
    assert found.reward_J[0].item() == pytest.approx(max(every))
    assert found.reward_J[1].item() == pytest.approx(min(every))


def test_a_composed_list_does_not_repeat_itself_where_it_can_help_it():
    pool = drawn([["same", "same"], ["x", "y"]], [[-1.0, -1.0], [-1.0, -1.0]])
    found = prefer(pool, worth({"same": 0.5, "x": 0.1, "y": 0.3}), SEEN, num_kept=2, min_gap=0.0)
    assert found is not None
    assert found.ids_JSN[0, :, 0].tolist() == [1000, 1011]


def test_prompts_whose_lists_are_worth_the_same_are_left_out():
    flat = dict.fromkeys(VALUES, 0.2)
    pool = drawn([["a", "b", "c"], ["d", "e", "f"]], [[-1.0] * 3, [-1.0] * 3])
    assert prefer(pool, worth(flat), SEEN, num_kept=2, min_gap=0.02) is None


def test_lists_closer_than_the_gap_are_not_told_apart():
    found = prefer(EXAMPLE, worth(VALUES), SEEN, num_kept=2, min_gap=0.5)
    assert found is not None
    assert found.reward_J[0] - found.reward_J[1] >= 0.5 * found.reward_J[0]
    assert prefer(EXAMPLE, worth(VALUES), SEEN, num_kept=4, min_gap=0.5) is None


def test_lists_in_list_form_are_taken_as_they_were_drawn():
    pool = drawn([["a"], ["d"], ["g"]], [[-1.0], [-2.0], [-3.0]])
    found = prefer(pool, worth(VALUES), SEEN, num_kept=3, min_gap=0.01)
    assert found is not None
    assert found.ids_JSN[:, 0, 0].tolist() == [1000, 1010, 1020]
    assert found.reference_JS[:, 0].tolist() == [-1.0, -2.0, -3.0]
