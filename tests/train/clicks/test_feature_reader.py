"""Features of logged impressions against the engine's own, one request at a time."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.formats.features import FEATURE_NAMES, candidate_features
from engine.formats.manifest import ScenarioSpec
from engine.formats.vocabulary import Vocabulary
from train.clicks.data import read_requests
from train.clicks.feature_reader import FeatureReader
from train.clicks.token_statistics import count_tokens
from train.generation.generator import read_prompts
from train.retrieval.pairs import BEFORE_CUT, EVER


def test_features_are_the_engines_for_every_request(clicked_run: Path) -> None:
    vocabulary = Vocabulary.load(clicked_run / "tokenizer.json")
    statistics = count_tokens(clicked_run, vocabulary)
    specs = msgspec.json.decode(
        (clicked_run / "mined/scenarios.json").read_bytes(), type=list[ScenarioSpec]
    )
    mined = pq.read_table(clicked_run / "mined/queries.parquet")
    counts = mined["num_searches_before_cut"].to_pylist()
    searches = dict(zip(mined["text"].to_pylist(), counts, strict=True))
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


def test_popularity_is_as_of_the_validation_cut_unless_a_bundles_is_wanted(
    clicked_run: Path,
) -> None:
    vocabulary = Vocabulary.load(clicked_run / "tokenizer.json")
    mined = pq.read_table(clicked_run / "mined/queries.parquet").slice(0, 3)
    texts, (scenario, *_) = mined["text"].to_pylist(), read_prompts(clicked_run).scenarios
    for columns in (BEFORE_CUT,), (EVER,), ():
        features_NF = FeatureReader(
            clicked_run, vocabulary, count_tokens(clicked_run, vocabulary), 1000, *columns
        ).of(
            *([scenario], ["any"], texts, [list(vocabulary.ids_of(t)) for t in texts]),
            *(np.arange(3), np.array([0, 3])),
        )
        expected = np.log1p(mined[(columns or (BEFORE_CUT,))[0]].to_numpy()) / 10
        found = features_NF[:, FEATURE_NAMES.index("log_popularity")]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_run_that_did_not_count_searches_before_the_cut_is_to_be_mined_again(
    clicked_run: Path, tmp_path: Path
) -> None:
    mined = pq.read_table(clicked_run / "mined/queries.parquet").drop_columns([BEFORE_CUT])
    shutil.copytree(clicked_run, tmp_path / "run")
    pq.write_table(mined, tmp_path / "run/mined/queries.parquet")
    with pytest.raises(ValueError, match="queryrec-train mine --force"):
        read_requests(tmp_path / "run", max_edges=50)
