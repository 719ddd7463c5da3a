"""The character model against hand-computed cases, a recursion, and exhaustive search."""

import itertools
import random
from collections import Counter
from math import log

import numpy as np
import pytest

from train.evaluation.char_model import CharModel

END = "\x03"


def reference(texts: set[str], order: int, text: str, character: str) -> float:
    """Returns log p by the recursion of the module's text, counting anew each time."""
    grams = [
        (padded[at - length - 1 : at - length], padded[at - length : at], padded[at])
        for padded in ("\x02" + t + END for t in sorted(texts))
        for at in range(1, len(padded))
        for length in range(min(at, order - 1) + 1)
    ]
    alphabet = {c for t in texts for c in t} | {END}

    def counts(history: str) -> Counter[str]:
        if len(history) == order - 1 or history.startswith("\x02"):
            return Counter(c for _, h, c in grams if h == history)
        return Counter(c for _, c in {(left, c) for left, h, c in grams if h == history})

    def discount(length: int) -> float:
        histories = {h for _, h, _ in grams if len(h) == length}
        every = Counter(n for h in histories for n in counts(h).values())
        return every[1] / (every[1] + 2 * every[2]) if every[1] else 0.5

    def p(history: str | None) -> float:
        if history is None:
            return 1 / len(alphabet)
        shorter, after = p(history[1:] if history else None), counts(history)
        if not after:
            return shorter
        d = discount(len(history))
        return (max(after[character] - d, 0) + d * len(after) * shorter) / after.total()

    return log(p(("\x02" + text)[-(order - 1) :] if order > 1 else ""))


def random_texts(seed: int, alphabet: str = "abc ", num: int = 12) -> set[str]:
    rng = random.Random(seed)
    return {"".join(rng.choices(alphabet, k=rng.randint(1, 6))) for _ in range(num)}


def test_kneser_ney_by_hand():
    model = CharModel(["ab", "aa"], order=2)
    a, b, end = (model.alphabet.index(c) for c in ("a", "b", END))
    # Before "a": the start and "a"; before "b": "a"; before the end: "b" and "a". One count of one
    # and two of two: D = 1 / 5. So p(a) = (2 - D) / 5 + 3 D / 5 / 3 = .4, p(b) = .2.
    # After "a": "a", "b" and the end once each; of all pairs four came once, one twice: D = 2 / 3.
    p_A = np.exp(model.log_probabilities("a"))
    assert p_A[b] == pytest.approx((1 - 2 / 3) / 3 + 2 / 3 * 0.2)
    assert p_A[a] == pytest.approx((1 - 2 / 3) / 3 + 2 / 3 * 0.4)
    assert p_A[end] == pytest.approx((1 - 2 / 3) / 3 + 2 / 3 * 0.4)


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


def test_the_usual_completion_comes_first_and_the_prefix_is_none():
    shoes = [f"{word} shoes" for word in ("blue", "green", "nice", "old", "new")]
    model = CharModel([*shoes, "red", "red hat"], order=4)
    assert model.complete("red sh", 1) == ["red shoes"]
    assert "red" not in model.complete("red", 9)
    assert model.complete("zzz", 3)  # a prefix nobody typed


def test_texts_of_any_length_end():
    model = CharModel(["a" * 300])
    assert all(t.startswith("aa") for t in model.complete("aa", 3))


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="at least one text"):
        CharModel([])
