"""Token statistics against counts and formulas written out one token at a time."""

from collections import Counter
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.formats.manifest import MAX_QUERY_TOKENS, BundleError
from engine.formats.token_statistics import FIGURES, START_ID, TokenStatistics
from engine.formats.vocabulary import EOS_ID, Vocabulary
from tests.train.conftest import topic_queries
from train.clicks.token_statistics import count_tokens, statistics_of
from train.retrieval.pairs import BEFORE_CUT

SIZE = 256
A, B, C, D, E, UNSEEN = 130, 131, 132, 133, 134, 140
QUERIES = [(A,), (A, B), (A, B, C), (A, C), (B, D), (D, E), (E,)]
SOURCES, TARGETS = np.array([0, 0, 1, 4]), np.array([1, 3, 2, 5])
tokens = st.sampled_from([A, B, C, D, E, UNSEEN, 141])


@pytest.fixture(scope="module")
def statistics() -> TokenStatistics:
    return statistics_of(QUERIES, SOURCES, TARGETS, size=SIZE)


def fluencies(text: tuple[int, ...]) -> list[float]:
    """log P(token | token before) of the text's tokens and its end."""
    then = Counter(t for q in QUERIES for t in (*q, EOS_ID))
    pairs = Counter(pair for q in QUERIES for pair in pairwise((START_ID, *q, EOS_ID)))
    before = Counter(t for q in QUERIES for t in (START_ID, *q))
    return [
        log((pairs[a, b] + 2 * (then[b] + 0.5) / (then.total() + 0.5 * SIZE)) / (before[a] + 2))
        for a, b in pairwise((START_ID, *text, EOS_ID))
    ]


def together(a: int, b: int) -> float:
    num = sum(a in q and b in q for q in QUERIES)
    with_a, with_b = (sum(t in q for q in QUERIES) for t in (a, b))
    return log((num + 1) / (with_a * with_b / len(QUERIES) + 1))


def sequel(a: int, b: int) -> float:
    """A token of a query, and a token that the next one has and this one lacks."""
    steps = [
        (x, y)
        for s, t in zip(SOURCES.tolist(), TARGETS.tolist(), strict=True)
        for x in QUERIES[s]
        for y in set(QUERIES[t]) - set(QUERIES[s])
    ]
    expected = sum(x == a for x, _ in steps) * sum(y == b for _, y in steps) / len(steps)
    return log((steps.count((a, b)) + 1) / (expected + 1))


def by_hand(query: tuple[int, ...], text: tuple[int, ...]) -> list[float]:
    log_p = fluencies(text)
    pairs = [together(a, b) for i, a in enumerate(text) for b in text[i + 1 :]]
    new = [t for t in text if t not in query]
    figures = [sum(log_p) / len(log_p) / 10, min(log_p) / 10, log_p[-1] / 10]
    figures.append(sum(pairs) / max(1, len(pairs)) / 5)
    for of in (together, sequel):
        best = [max((of(q, t) for q in query), default=0.0) / 5 for t in new]
        figures += [sum(best) / len(best), min(best)] if best else [0.0, 0.0]
    frequency = [log(1 + sum(t in q for q in QUERIES)) / 10 for t in new]
    return figures + ([sum(frequency) / len(new), min(frequency)] if new else [0.0, 0.0])


@settings(max_examples=200, deadline=None)
@given(
    query=st.lists(tokens, max_size=4).map(tuple),
    texts=st.lists(st.lists(tokens, min_size=1, max_size=5, unique=True).map(tuple), min_size=1),
)
def test_figures_are_those_counted_by_hand(
    statistics: TokenStatistics, query: tuple[int, ...], texts: list[tuple[int, ...]]
) -> None:
    found = statistics.figures(query, texts)
    assert found.shape == (len(texts), len(FIGURES))
    expected = np.array([by_hand(query, text) for text in texts], np.float32)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_text_has_the_same_figures_alone_and_among_others(statistics: TokenStatistics) -> None:
    texts = [(A, B, A), (C,), (UNSEEN, UNSEEN), (D, E, A, B, C)]
    together_CT = statistics.figures((A, D), texts)
    for row, text in zip(together_CT, texts, strict=True):
        np.testing.assert_array_equal(statistics.figures((A, D), [text])[0], row)
    assert np.isfinite(together_CT).all()


def test_of_a_long_query_the_last_tokens_count(statistics: TokenStatistics) -> None:
    texts = [(A, B), (C, D, E)]
    end = (A, D) * (MAX_QUERY_TOKENS // 2)
    found = statistics.figures((C, C, C, *end), texts)
    np.testing.assert_array_equal(found, statistics.figures(end, texts))
    assert (found != statistics.figures((C, A, D), texts)).any()


def test_what_is_remembered_of_a_text_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.formats.token_statistics._REMEMBERED", 2)
    statistics = statistics_of(QUERIES, SOURCES, TARGETS, size=SIZE)
    for texts in ([(A, B), (C,)], [(C,), (A, B), (A, B), (B, A)], [(D, E)], [(A, B)]):
        fresh = statistics_of(QUERIES, SOURCES, TARGETS, size=SIZE)
        for query in ((A,), (D, C)):
            found = statistics.figures(query, texts)
            np.testing.assert_array_equal(found, fresh.figures(query, texts))


def test_a_token_that_comes_twice_tells_against_a_text(statistics: TokenStatistics) -> None:
    once, twice = statistics.figures((), [(A, B), (A, A)])
    assert twice[FIGURES.index("coherence")] < once[FIGURES.index("coherence")]


def test_no_candidates_have_no_figures(statistics: TokenStatistics) -> None:
    assert statistics.figures((A,), []).shape == (0, len(FIGURES))


def test_what_the_log_says_stands_above_what_it_does_not(statistics: TokenStatistics) -> None:
    said, unsaid = statistics.figures((A,), [(A, B), (A, UNSEEN)])
    names = {name: i for i, name in enumerate(FIGURES)}
    for name in ("fluency", "coherence", "new_sequel_mean", "new_frequency_mean"):
        assert said[names[name]] > unsaid[names[name]]


def test_saved_statistics_say_the_same_and_are_the_same_bytes(
    statistics: TokenStatistics, tmp_path: Path
) -> None:
    for name in ("first.npz", "second.npz"):
        statistics.save(tmp_path / name)
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    loaded = TokenStatistics.load(tmp_path / "first.npz")
    assert loaded.size == SIZE
    texts = [(A, B), (E, UNSEEN)]
    np.testing.assert_array_equal(loaded.figures((A, C), texts), statistics.figures((A, C), texts))


def test_a_log_of_nothing_still_gives_numbers() -> None:
    none = np.zeros(0, np.int64)
    empty = statistics_of([], none, none, size=SIZE)
    assert np.isfinite(empty.figures((A,), [(A, B), (C,)])).all()


@pytest.mark.parametrize("damage", ["missing", "cut", "parts"])
def test_damaged_files_are_refused_by_name(
    statistics: TokenStatistics, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "statistics.npz"
    statistics.save(path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    else:
        with np.load(path) as arrays:
            changed = dict(arrays)
        changed["leads"] = changed["leads"][:5]
        with path.open("wb") as stream:
            np.savez(stream, **changed)
    with pytest.raises(BundleError, match=r"statistics\.npz"):
        TokenStatistics.load(path)


def test_pairs_of_a_vocabulary_of_150000_tokens_are_told_apart(
    statistics: TokenStatistics,
) -> None:
    """Pairs of its ids need more than 32 bits, where they would meet others."""
    size = 151_936
    shift = size - SIZE
    queries = [tuple(i + shift for i in q) for q in QUERIES]
    large = statistics_of(queries, SOURCES, TARGETS, size=size)
    found = large.figures((A + shift,), [(A + shift, B + shift), (D + shift, UNSEEN + shift)])
    expected = statistics.figures((A,), [(A, B), (D, UNSEEN)])
    coherence = FIGURES.index("coherence")
    np.testing.assert_allclose(found[:, coherence:], expected[:, coherence:], atol=1e-6)


def test_queries_of_the_held_out_time_count_for_nothing(mined_run: Path, tmp_path: Path) -> None:
    vocabulary = Vocabulary.load(mined_run / "tokenizer.json")
    late, *_ = topic_queries()[0]
    queries = pq.read_table(mined_run / "mined/queries.parquet").to_pylist()
    pairs = pq.read_table(mined_run / "mined/pairs.parquet").to_pylist()
    tables = {
        "searched later": (
            [{**q, BEFORE_CUT: 0} if q["text"] == late else q for q in queries],
            pairs,
        ),
        "never searched": (
            [q for q in queries if q["text"] != late],
            [p for p in pairs if late not in (p["source"], p["target"])],
        ),
    }
    for name, (own_queries, own_pairs) in tables.items():
        mined = tmp_path / name / "mined"
        mined.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(own_queries), mined / "queries.parquet")
        pq.write_table(pa.Table.from_pylist(own_pairs), mined / "pairs.parquet")
        count_tokens(tmp_path / name, vocabulary).save(tmp_path / f"{name}.npz")
    found, expected = ((tmp_path / f"{name}.npz").read_bytes() for name in tables)
    assert found == expected
