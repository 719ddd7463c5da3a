"""The click model's graph equals one forward pass per candidate."""

import numpy as np
import pytest

from engine.formats.features import FEATURE_NAMES
from export import parity
from export.checkpoint import Run
from export.click_model import build_click_model
from export.requests import sample_requests
from export.sample import write_sample_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("click") / "run"
    write_sample_run(directory, seed=7)
    return Run(directory)


def test_shared_context_equals_one_pass_per_candidate(run: Run) -> None:
    checkpoint, head = run.click_backbone(), run.click_head()
    requests = sample_requests(run, 12, seed=1)
    features = np.random.default_rng(0).random((12, 8, len(FEATURE_NAMES)), np.float32)
    graph = build_click_model(checkpoint.state, head, checkpoint.shape, checkpoint.cos_sin(300))
    got = parity.click_graph(parity.session_of(graph), run, requests, features)
    expected = parity.click_reference(checkpoint, head, run, requests, features)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.ptp(expected) > 0.01


def test_candidate_order_and_company_do_not_change_a_score(run: Run) -> None:
    checkpoint, head = run.click_backbone(), run.click_head()
    graph = build_click_model(checkpoint.state, head, checkpoint.shape, checkpoint.cos_sin(300))
    session = parity.session_of(graph)
    request = sample_requests(run, 1, seed=2)[0]
    features = np.random.default_rng(0).random((1, 8, len(FEATURE_NAMES)), np.float32)
    together = parity.click_graph(session, run, [request], features)
    reverse = request._replace(candidates=request.candidates[::-1])
    reversed_logits = parity.click_graph(session, run, [reverse], features[:, ::-1].copy())
    np.testing.assert_allclose(reversed_logits[:, ::-1], together, atol=1e-5)
    alone = request._replace(candidates=request.candidates[:1])
    np.testing.assert_allclose(
        parity.click_graph(session, run, [alone], features[:, :1]), together[:, :1], atol=1e-5
    )
