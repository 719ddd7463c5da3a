"""The character model against hand-computed cases, a recursion, and exhaustive search."""

import itertools
import random
from math import log

import numpy as np
import pytest

from train.evaluation.char_model import CharModel

END = "\x03"


def reference(texts: dict[str, float], order: int, text: str, character: str) -> float:
    """Returns log p by the recursion of the module's text, counting anew for each history."""
    alphabet = {c for t in texts for c in t} | {END}

    def p(history: str | None) -> float:
        if history is None:
            return 1 / len(alphabet)
        shorter = p(history[1:] if history else None)
        counts: dict[str, float] = {}
        for t, weight in texts.items():
            padded = "\x02" + t + END
            for at in range(1, len(padded)):
                if padded[:at].endswith(history):
                    counts[padded[at]] = counts.get(padded[at], 0.0) + weight
        if not counts:
            return shorter
        return (counts.get(character, 0.0) + len(counts) * shorter) / (
            sum(counts.values()) + len(counts)
        )

    return log(p(("\x02" + text)[-(order - 1) :] if order > 1 else ""))


def random_texts(seed: int, alphabet: str = "abc ", num: int = 12) -> dict[str, float]:
    rng = random.Random(seed)
    return {
        "".join(rng.choices(alphabet, k=rng.randint(1, 6))): rng.choice([1, 2.5, 7])
        for _ in range(num)
    }


def test_witten_bell_by_hand():
    model = CharModel({"ab": 1, "aa": 1}, order=2)
    a, b, end = (model.alphabet.index(c) for c in ("a", "b", END))
    # After "a": a, b and the end once each. Of all: a 3 times, b once, the end twice.
    p_A = np.exp(model.log_probabilities("a"))
    assert p_A[b] == pytest.approx((1 + 3 * (1 + 3 / 3) / 9) / 6)
    assert p_A[a] == pytest.approx((1 + 3 * (3 + 3 / 3) / 9) / 6)
    assert p_A[end] == pytest.approx((1 + 3 * (2 + 3 / 3) / 9) / 6)


@pytest.mark.parametrize("order", [1, 2, 4, 7])
def test_probabilities_are_those_of_the_recursion_and_sum_to_one(order):
    texts = random_texts(order)
    model = CharModel(texts, order=order)
    for text in ["", "a", "ab", "bca", "c c", "zzz", "azb", "abcabcabc", *texts]:
        log_A = model.log_probabilities(text)
        assert np.exp(log_A).sum() == pytest.approx(1)
        expected = [reference(texts, order, text, c) for c in model.alphabet]
        assert log_A == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_that_drops_nothing_finds_what_exhaustive_search_finds(seed):
    texts = random_texts(seed, alphabet="ab", num=6)
    model = CharModel(texts, order=3, beam=10**6)
    prefix = random.Random(seed).choice(["", "a", "b", "ab"])
    place = {c: i for i, c in enumerate(model.alphabet)}

    def log_p(text: str) -> float:
        steps = [(text[:at], c) for at, c in enumerate(text + END) if at >= len(prefix)]
        return sum(model.log_probabilities(before)[place[c]] for before, c in steps)

    every = [
        prefix + "".join(rest) for n in range(1, 11) for rest in itertools.product("ab", repeat=n)
    ]
    # Longer texts are less probable than the fifth of these.
    best = sorted(every, key=lambda t: (-log_p(t), t))[:5]
    found = model.complete(prefix, 5)
    assert [log_p(t) for t in found] == pytest.approx([log_p(t) for t in best])


def test_the_heavier_text_is_completed_first_and_the_prefix_is_no_completion():
    model = CharModel({"red shoes": 5, "red hat": 2, "red": 50})
    assert model.complete("red", 2) == ["red shoes", "red hat"]
    assert model.complete("blue", 3)  # a prefix nobody typed


def test_texts_of_any_length_end():
    model = CharModel({"a" * 300: 1})
    assert all(t.startswith("aa") for t in model.complete("aa", 3))


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="at least one text"):
        CharModel({})
