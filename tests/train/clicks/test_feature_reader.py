"""Features of logged impressions against the engine's own, one request at a time."""

from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq

from engine.formats.features import FEATURE_NAMES, candidate_features
from engine.formats.manifest import ScenarioSpec
from engine.formats.vocabulary import Vocabulary
from train.clicks.feature_reader import FeatureReader
from train.clicks.token_statistics import count_tokens


def test_features_are_the_engines_for_every_request(clicked_run: Path) -> None:
    vocabulary = Vocabulary.load(clicked_run / "tokenizer.json")
    statistics = count_tokens(clicked_run, vocabulary)
    specs = msgspec.json.decode(
        (clicked_run / "mined/scenarios.json").read_bytes(), type=list[ScenarioSpec]
    )
    mined = pq.read_table(clicked_run / "mined/queries.parquet")
    searches = dict(zip(mined["text"].to_pylist(), mined["num_searches"].to_pylist(), strict=True))
    pairs = pq.read_table(clicked_run / "mined/pairs.parquet").to_pylist()
    association = {(p["source"], p["target"]): p["association"] for p in pairs}
    followed = pairs[0]["source"]
    known = [followed, *(p["target"] for p in pairs if p["source"] == followed)]
    known = list(dict.fromkeys([*known, *searches]))[:12]
    texts = [*known, "never searched", "neither was this"]
    # Requests that come again, in another scenario, with other and with the same texts.
    asked = [
        (specs[0], known[0], [1, 2, 12]),
        (specs[1], known[0][:3], [0, 12, 13]),
        (specs[0], known[0], [12, 3, 1]),
        (specs[2], known[0], [1, 2, 12]),
        (specs[0], "never searched", [0]),
        (specs[0], known[5], [6, 7, 8, 9]),
        (specs[1], known[0][:3], [13, 4]),
    ]
    candidates = [list(vocabulary.ids_of(t)) for t in texts]
    features_NF = FeatureReader(clicked_run, vocabulary, statistics, max_edges=1000).of(
        [scenario for scenario, _, _ in asked],
        [query for _, query, _ in asked],
        texts,
        candidates,
        np.array([c for _, _, shown in asked for c in shown]),
        np.cumsum([0, *(len(shown) for _, _, shown in asked)]),
    )
    expected = [
        candidate_features(
            scenario,
            query,
            [texts[c] for c in shown],
            [float(searches.get(texts[c], 0)) for c in shown],
            [association.get((query, texts[c]), 0.0) for c in shown],
            statistics.figures(vocabulary.ids_of(query), [candidates[c] for c in shown]),
        )
        for scenario, query, shown in asked
    ]
    np.testing.assert_array_equal(features_NF, np.concatenate(expected))
    assert features_NF[:, FEATURE_NAMES.index("npmi")].any()
    assert features_NF[:, FEATURE_NAMES.index("is_known")].any()
