"""What is nearest by words and by character n-grams, and the ends that follow a prefix."""

import random
from collections import Counter
from math import log

import numpy as np
import pytest

from train.evaluation.baselines import NearestNeighbour, SearchLog, SuffixCompletion
from train.evaluation.bm25 import Bm25

WORDS = ["red", "shoes", "cheap", "garden", "hose", "for", "kids", "lamp", "reddish", "gardening"]


def random_log(seed: int, num: int = 60) -> SearchLog:
    rng = random.Random(seed)
    texts = {" ".join(rng.choices(WORDS, k=rng.randint(1, 4))) for _ in range(num)}
    return SearchLog(Counter({t: rng.randint(1, 50) for t in sorted(texts)}), {})


def test_bm25_by_hand():
    bm25 = Bm25({"red shoes": 2, "red hat": 5, "garden": 1})
    # "shoes" is in one query of three, "red" in two; the mean length is 5 / 3.
    idf_shoes, idf_red = log(1 + 2.5 / 1.5), log(1 + 1.5 / 2.5)
    norm = 1.2 * (0.25 + 0.75 * 2 / (5 / 3))
    scores = bm25.scores("red shoes", ["red shoes", "red hat", "new shoes", "garden"])
    weight = 2.2 / (1 + norm)
    expected = [(idf_red + idf_shoes) * weight, idf_red * weight, idf_shoes * weight, 0.0]
    assert scores == pytest.approx(expected)
    assert bm25.suggest("red shoes", 5) == ["red hat"]
    assert bm25.suggest("blue", 5) == []


def test_bm25_finds_what_shares_characters_in_scripts_without_spaces():
    bm25 = Bm25({"全自动咖啡机": 2, "咖啡杯": 5, "运动鞋": 1})
    assert bm25.suggest("家用咖啡机", 5) == ["全自动咖啡机", "咖啡杯"]
    shared, other = bm25.scores("家用咖啡机", ["商务咖啡机", "运动鞋"])
    assert shared > other == 0


@pytest.mark.parametrize("seed", range(4))
def test_postings_give_the_order_of_scores_one_by_one(seed):
    known = random_log(seed)
    bm25 = Bm25(known.counts)
    texts = sorted(known.counts, key=lambda q: (-known.counts[q], q))
    for query in ["red shoes", "cheap cheap hose", "for kids unknown", texts[3]]:
        scores = bm25.scores(query, texts)
        order = np.argsort(-scores, kind="stable")
        expected = [texts[i] for i in order if scores[i] > 0 and texts[i] != query][:7]
        assert bm25.suggest(query, 7) == expected


@pytest.mark.parametrize("seed", range(4))
def test_similarities_order_known_queries_as_the_index_does(seed):
    known = random_log(seed, num=200)
    nearest = NearestNeighbour(known)
    texts = sorted(known.counts)
    for query in ["red shoe", "gardens", "zebra hose"]:
        cosines = nearest.similarities(query, texts)
        assert cosines.max() <= 1 + 1e-9
        found = nearest.suggest(query, 5)
        expected = sorted(cosines[[t != query for t in texts]], reverse=True)[: len(found)]
        assert [cosines[texts.index(t)] for t in found] == pytest.approx(expected)


def test_a_text_is_most_similar_to_itself_even_if_the_log_lacks_its_letters():
    nearest = NearestNeighbour(random_log(0))
    same, other = nearest.similarities("xylophone red", ["xylophone red", "red"])
    assert same == pytest.approx(1)
    assert other < same


def test_suffixes_are_ranked_by_how_many_searches_end_so():
    counts = Counter({"cheap flights": 3, "best cheap flights": 2, "cheap hotels": 4, "inn": 1})
    suffix = SuffixCompletion(SearchLog(counts, {}))
    assert suffix.suggest("very che", 5) == [
        "very cheap flights",
        "very cheap hotels",
    ]
    # A typed space ends the word: only what goes on after it counts.
    assert suffix.suggest("best cheap ", 1) == ["best cheap flights"]
    assert suffix.suggest("fl", 5) == ["flights"]
    assert suffix.suggest("in", 5) == ["inn"]
    assert suffix.suggest("inn", 5) == []
    assert suffix.suggest("qq", 5) == []
