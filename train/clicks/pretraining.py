"""Requests made from sessions, on which the click model learns to read before it sees a click.

Clicks are few; what people searched next is plentiful, and says much the same: which text fits a
query. Each request has the next query of a real session as the one right candidate, and wrong ones
that differ in kind: popular queries, queries that share a word (or, for a completion, the typed
prefix), and broken texts whose words were shuffled, repeated or swapped, so that what reads like a
query is learnt, too. Of the features, what the log knows of a text, and of queries that follow one
another, is left at 0, or it would give the answer away. Knows nothing of the model.
"""

# R requests, N candidates (rows)
import random
from array import array
from bisect import bisect_left
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.formats.features import FEATURE_NAMES, candidate_features
from engine.formats.manifest import MAX_CANDIDATE_TOKENS
from engine.formats.prompt import SESSION, SideInformation
from engine.formats.text import normalise_prefix
from engine.formats.token_statistics import SEQUEL_LEAST, SEQUEL_MEAN, TokenStatistics
from engine.formats.words import parts_of, words_of
from train.clicks.data import ClickRequests, packed_ids
from train.generation.generator import read_prompts
from train.mining.mine import CONTEXTS
from train.retrieval.pairs import BEFORE_CUT, read_queries

_NUM_POPULAR, _NUM_SIMILAR, _NUM_BROKEN = 2, 3, 2  # wrong candidates of a request
_SEQUELS = [FEATURE_NAMES.index(name) for name in (SEQUEL_MEAN, SEQUEL_LEAST)]
_MAX_SHARING = 2000  # queries remembered per word


class WrongTexts:
    """Makes candidates that a user who went on to another query did not want."""

    def __init__(self, texts: list[str], num_searches: list[int], *, seed: int = 0) -> None:
        """Takes what is known.

        Args:
            texts: queries, sorted by their bytes.
            num_searches: how often each was searched.
            seed: of which queries are remembered of a word that many share.
        """
        self._texts = texts
        self._encoded = [t.encode() for t in texts]
        self._cumulative = np.cumsum(np.array(num_searches, np.float64)).tolist()
        self._sharing: dict[str, list[str]] = defaultdict(list)
        # In random order: the first by their bytes are alike, such as those that begin with digits.
        for row in np.random.default_rng(seed).permutation(len(texts)).tolist():
            text = texts[row]
            for word in words_of(text):
                if len(self._sharing[word]) < _MAX_SHARING:
                    self._sharing[word].append(text)

    def popular(self, rng: random.Random, num: int) -> list[str]:
        """Returns queries drawn by popularity."""
        return rng.choices(self._texts, cum_weights=self._cumulative, k=num)

    def sharing_a_word(self, query: str, rng: random.Random, num: int) -> list[str]:
        """Returns queries that share a word with the query; none if there are none."""
        pools = [self._sharing[w] for w in words_of(query) if w in self._sharing]
        return [rng.choice(rng.choice(pools)) for _ in range(num)] if pools else []

    def starting_with(self, prefix: str, rng: random.Random, num: int) -> list[str]:
        """Returns queries that start with the prefix; none if there are none."""
        low = bisect_left(self._encoded, prefix.encode())
        high = bisect_left(self._encoded, prefix.encode() + b"\xff")
        return [self._texts[rng.randrange(low, high)] for _ in range(num)] if high > low else []

    def broken(self, text: str, kept: str, rng: random.Random) -> str:
        """Returns the text with a word added, repeated, swapped for another, or all shuffled.

        Of a text without spaces, the result has none either, or they would give it away.

        Args:
            text: to break.
            kept: what the result starts with.
            rng: decides.
        """
        words, space = parts_of(text[len(kept) :])
        space = space and parts_of(text)[1]  # the rest alone may be of another script
        other = rng.choice(parts_of(rng.choice(self._texts))[0])
        place = rng.randrange(len(words))
        kind = rng.randrange(4)
        if kind == 0:
            words.insert(place + 1, other)
        elif kind == 1:
            words.insert(place + 1, words[place])
        elif kind == 2 and len(words) > 1:
            words[place or 1] = other
        else:
            words = rng.sample([*words, other], len(words) + 1)
        return (kept + space.join(words)).strip()


def session_requests(
    run: Path, statistics: TokenStatistics, *, num_requests: int, seed: int
) -> ClickRequests | None:
    """Returns requests made from the training contexts, scenarios in turn; the right one is first.

    None if no requests are wanted, or there are no contexts.

    Args:
        run: run directory, mined, with its tokenizer.
        statistics: of its tokens.
        num_requests: R; contexts are drawn by how often they occurred, with repetition.
        seed: of contexts and wrong candidates.

    Raises:
        ValueError: an older release mined the run.
    """
    mined = run / "mined"
    table = pq.read_table(mined / CONTEXTS)
    table = table.filter(pc.field("split") == "train")
    if not num_requests or not table.num_rows:
        return None
    # What was searched later only is never the right one: as a wrong one it would be told by that.
    queries = read_queries(mined, BEFORE_CUT).filter(pc.field(BEFORE_CUT) > 0)
    wrong = WrongTexts(queries["text"].to_pylist(), queries[BEFORE_CUT].to_pylist(), seed=seed)
    prompts = read_prompts(run)
    scenarios, renderer = prompts.scenarios, prompts.renderer
    ids_of = renderer.vocabulary.ids_of
    rng = random.Random(seed)
    weights = table["weight"].to_pylist()
    drawn = rng.choices(range(table.num_rows), weights=weights, k=num_requests)
    rows = table.take(drawn).select(["query", "target", "session_queries"]).to_pylist()
    contexts: list[array[int]] = []  # packed one by one: as lists they take six times as much
    shown: list[list[str]] = []
    features, scenario_R = [], []
    for number, row in enumerate(rows):
        spec = scenarios[number % len(scenarios)]
        query, target, session = row["query"], row["target"], list(row["session_queries"])
        kept = ""
        if spec.completes_prefix:
            session.append(query)
            query = kept = normalise_prefix(target[: rng.randrange(1, len(target) + 1)])
            if not target.startswith(query) or query.strip() == target:
                query = kept = target[:1]
            similar = wrong.starting_with(query, rng, _NUM_SIMILAR + _NUM_POPULAR)
        else:
            similar = wrong.sharing_a_word(query, rng, _NUM_SIMILAR)
            similar += wrong.popular(rng, _NUM_POPULAR)
        similar += [wrong.broken(target, kept, rng) for _ in range(_NUM_BROKEN)]
        texts = list(dict.fromkeys([target, *similar]))
        texts = [t for t in texts if t and t != query.strip()] if target != query else [target]
        zeros = [0.0] * len(texts)
        context = renderer.click_context(
            spec.name, query, [SideInformation(SESSION, q) for q in session]
        )
        contexts.append(array("i", context))
        shown.append(texts)
        figures_CT = statistics.figures(
            ids_of(query), [ids_of(t)[:MAX_CANDIDATE_TOKENS] for t in texts]
        )
        features_CF = candidate_features(spec, query, texts, zeros, zeros, figures_CT)
        features_CF[:, _SEQUELS] = 0
        features.append(features_CF)
        scenario_R.append(number % len(scenarios))
    counts = [len(texts) for texts in shown]
    distinct = list(dict.fromkeys(t for texts in shown for t in texts))
    row_of = {text: i for i, text in enumerate(distinct)}
    position_N = np.concatenate([np.arange(n) for n in counts])
    return ClickRequests(
        scenarios=[s.name for s in scenarios],
        scenario_R=np.array(scenario_R),
        query_R=np.arange(len(rows)),
        is_valid_R=np.zeros(len(rows), np.bool_),
        contexts=contexts,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        candidates=packed_ids(
            ids[:MAX_CANDIDATE_TOKENS] for ids in renderer.vocabulary.encode_batch(distinct)
        ),
        candidate_N=np.array([row_of[t] for texts in shown for t in texts]),
        features_NF=np.concatenate(features),
        position_N=position_N,
        rank_N=position_N,
        clicked_N=position_N == 0,
    )
