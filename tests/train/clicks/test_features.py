"""Features in training are those of serving, and tell clicks apart without any text."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaModel

from engine.answering.candidates import Candidate
from engine.answering.scoring import CandidateInputs
from engine.feedback.attribution import Source
from engine.formats.features import FEATURE_NAMES, NUM_LOG_FEATURES
from engine.formats.vocabulary import Vocabulary
from train.clicks.calibration import auc
from train.clicks.data import ClickRequests, RequestReader, read_requests
from train.clicks.feature_fit import features_of, fit_features
from train.clicks.judge import Judged, table_of
from train.clicks.losses import ClickLoss
from train.clicks.model import ClickModel
from train.clicks.token_statistics import count_tokens
from train.generation.generator import read_prompts
from train.models.backbone import llama_config, shapes_of
from train.retrieval.pairs import EVER

LONG = " ".join(["longest"] * 40)  # more tokens than a candidate may have


@pytest.fixture(scope="module")
def requests(clicked_run: Path) -> ClickRequests:
    found = read_requests(clicked_run, max_edges=50)
    assert found is not None
    return found


def untrained(requests: ClickRequests) -> ClickLoss:
    torch.manual_seed(0)
    model = ClickModel(LlamaModel(llama_config(shapes_of("tiny").click_model, 256)))
    return ClickLoss(model, int(requests.position_N.max()) + 1, [[] for _ in requests.scenarios])


@pytest.mark.parametrize("scenario", ["suggestion", "completion", "clarification"])
def test_training_and_serving_read_the_same(clicked_run: Path, scenario: str) -> None:
    rows = pq.read_table(clicked_run / "mined/queries.parquet").to_pylist()
    searches = {row["text"]: float(row["num_searches"]) for row in rows}
    query, texts = rows[3]["text"], [rows[0]["text"], "never heard of", LONG, rows[9]["text"]]
    vocabulary = Vocabulary.load(clicked_run / "tokenizer.json")
    statistics = count_tokens(clicked_run, vocabulary)
    asked = Judged(scenario, query, (), texts)
    reader = RequestReader(clicked_run, max_edges=50, statistics=statistics, searches=EVER)
    trained = reader.of(table_of([asked]))
    candidates = [Candidate(t, t, Source.LOG, searches.get(t, 0.0)) for t in texts]
    (spec,) = (s for s in read_prompts(clicked_run).scenarios if s.name == scenario)
    CandidateInputs(vocabulary, statistics).attach(spec, query, candidates)
    npmi = FEATURE_NAMES.index("npmi")
    served_CF = np.array([c.features_F for c in candidates])
    served_CF[:, npmi] = trained.features_NF[:, npmi]  # the index's, tested elsewhere
    np.testing.assert_array_equal(trained.features_NF, served_CF)
    assert [tuple(trained.candidates[c]) for c in trained.candidate_N] == [
        tuple(c.ids or ()) for c in candidates
    ]


def test_hidden_rows_look_as_if_the_log_did_not_know_the_text(requests: ClickRequests) -> None:
    rows = np.arange(4000)
    some, none = (features_of(requests, rows, share, seed=1) for share in (0.3, 0.0))
    is_hidden_N = (some[:, :NUM_LOG_FEATURES] == 0).all(dim=1)
    assert 0.25 < is_hidden_N.float().mean() < 0.35
    assert (none[:, FEATURE_NAMES.index("is_known")] == 1).all()
    torch.testing.assert_close(some[:, NUM_LOG_FEATURES:], none[:, NUM_LOG_FEATURES:])
    assert requests.features_NF[rows].tobytes() == none.numpy().tobytes()  # left as they were


def test_features_alone_tell_clicks_apart_and_the_whole_starts_from_there(
    requests: ClickRequests,
) -> None:
    train = np.flatnonzero(~requests.is_valid_R)
    held_out = requests.rows(np.flatnonzero(requests.is_valid_R))
    loss = untrained(requests)
    loss.model.standardise(features_of(requests, requests.rows(train), 0.3, seed=0))
    features = torch.from_numpy(requests.features_NF[held_out])
    first = requests.position_N[held_out] == 0  # everybody sees it

    def auc_of_first() -> float:
        with torch.no_grad():
            logits_N = loss.model.head.feature_logits(features).numpy()
        return auc(logits_N[first], requests.clicked_N[held_out][first])

    before = auc_of_first()
    fit_features(loss, requests, train, hidden_share=0.3, seed=0)
    assert auc_of_first() > max(0.55, before)
    head = loss.model.head.eval()
    with torch.no_grad():
        last = torch.randn(len(features), 1, loss.model.backbone.config.hidden_size)
        whole = head(last, features[:, None])[:, 0]
        torch.testing.assert_close(whole, head.feature_logits(features))


def test_the_same_seed_fits_the_same(requests: ClickRequests) -> None:
    """What a resumed training repeats before it reads its checkpoint."""
    train = np.flatnonzero(~requests.is_valid_R)
    fitted = []
    for _ in range(2):
        loss = untrained(requests)
        fit_features(loss, requests, train, hidden_share=0.3, seed=3)
        fitted.append(loss.model.head.features.weight.detach().clone())
    torch.testing.assert_close(*fitted, rtol=0, atol=0)


def test_a_feature_that_never_differed_is_not_read() -> None:
    model = ClickModel(LlamaModel(llama_config(shapes_of("tiny").click_model, 256))).eval()
    features = torch.rand(50, len(FEATURE_NAMES))
    features[:, 4] = 1.0
    model.standardise(features)
    changed = features.clone()
    changed[:, 4] = 0.0
    with torch.no_grad():
        torch.testing.assert_close(
            model.head.feature_logits(features), model.head.feature_logits(changed)
        )
    assert np.isfinite(model.head.feature_logits(features).detach().numpy()).all()


def test_text_is_switched_off_for_a_share_of_the_candidates_in_training_only() -> None:
    torch.manual_seed(0)
    model = ClickModel(LlamaModel(llama_config(shapes_of("tiny").click_model, 256)))
    head = model.head
    head.text_dropout = 0.4
    last = torch.randn(1, 2000, model.backbone.config.hidden_size)
    features = torch.rand(1, 2000, len(FEATURE_NAMES))
    with torch.no_grad():
        alone = head.feature_logits(features)
        is_off = (head.train()(last, features) - alone).abs() < 1e-6
        assert 0.35 < is_off.float().mean() < 0.45
        assert not ((head.eval()(last, features) - alone).abs() < 1e-6).all()
        torch.testing.assert_close(head(last, features), head(last, features))
