"""The reward of a list against a slow, obvious reference."""

import numpy as np
import pytest

from train.alignment.reward import freshness, list_reward


def test_texts_are_worth_their_click_probability_where_they_will_be_shown():
    texts = ["red shoes", "blue hats", "green socks"]
    p = np.array([0.1, 0.4, 0.2])
    # Shown best first: .4 at the first position, .2 at the second; two fit.
    assert list_reward(p, texts, "clothes", [1.0, 0.5], 2) == pytest.approx(0.4 + 0.5 * 0.2)
    assert list_reward(p, texts, "clothes", [1.0, 0.5], 3) == pytest.approx(0.4 + 0.1 + 0.05)
    assert list_reward(p, texts, "clothes", [], 3) == pytest.approx(0.7)


def test_a_repeated_text_adds_nothing():
    once = list_reward(np.array([0.4]), ["red shoes"], "shoes", [1.0, 0.5], 6)
    twice = list_reward(np.array([0.4, 0.4]), ["red shoes", "red shoes"], "shoes", [1.0, 0.5], 6)
    assert once == pytest.approx(twice)


def test_of_two_texts_that_say_the_same_the_better_one_keeps_its_worth():
    texts = ["cheap red shoes", "red shoes cheap", "black boots"]
    kept = freshness(np.array([0.1, 0.3, 0.2]), texts, "shoes")
    assert kept.tolist() == pytest.approx([0.0, 1.0, 1.0])


def test_words_of_the_query_do_not_make_texts_similar():
    kept = freshness(np.array([0.3, 0.2]), ["shoes men", "shoes women"], "shoes")
    assert kept.tolist() == pytest.approx([1.0, 1.0])


def test_similar_texts_lose_a_part():
    # Of 3 words 2 are common: similarity 1/2, (1/2 - .35) / .55 is lost.
    kept = freshness(np.array([0.3, 0.2]), ["a b", "a b c d"], "q")
    assert kept.tolist() == pytest.approx([1.0, 1 - 0.15 / 0.55])


def test_an_empty_list_is_worth_nothing():
    assert list_reward(np.array([]), [], "q", [1.0], 6) == 0.0


def test_the_order_of_texts_does_not_matter():
    texts = ["a b c", "a b d", "x", "a b c d", "y z"]
    p = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    value = list_reward(p, texts, "q", [1.0, 0.6, 0.4], 4)
    for order in np.random.default_rng(0).permuted(np.tile(np.arange(5), (20, 1)), axis=1):
        shuffled = [texts[i] for i in order]
        assert list_reward(p[order], shuffled, "q", [1.0, 0.6, 0.4], 4) == pytest.approx(value)


def test_texts_without_spaces_repeat_one_another_by_their_characters():
    texts = ["红色运动鞋", "运动鞋红色", "蓝色连衣裙"]
    kept = freshness(np.array([0.3, 0.2, 0.1]), texts, "衣服")
    # Pairs: three of both are the same, five are not: similarity 3/5.
    assert kept.tolist() == pytest.approx([1.0, 1 - (3 / 5 - 0.35) / 0.55, 1.0])


def test_what_texts_without_spaces_have_of_the_query_does_not_make_them_similar():
    kept = freshness(np.array([0.3, 0.2]), ["咖啡机家用", "咖啡机商务"], "咖啡机")
    assert kept.tolist() == pytest.approx([1.0, 1.0])
