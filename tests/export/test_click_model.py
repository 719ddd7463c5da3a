"""The click model's graph equals one forward pass per candidate."""

import numpy as np
import pytest

from export import click_parity, parity
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
    requests = sample_requests(run, 16, seed=1)
    assert {len(r.candidates) for r in requests} == set(range(1, 17))
    features = click_parity.sample_features(head, requests, seed=0)
    graph = build_click_model(checkpoint.state, head, checkpoint.shape, checkpoint.cos_sin(400))
    got = click_parity.click_graph(parity.session_of(graph), run, requests, features)
    expected = click_parity.click_reference(checkpoint, head, run, requests, features)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.ptp(expected) > 0.01


def test_candidate_order_and_company_do_not_change_a_score(run: Run) -> None:
    checkpoint, head = run.click_backbone(), run.click_head()
    graph = build_click_model(checkpoint.state, head, checkpoint.shape, checkpoint.cos_sin(400))
    session = parity.session_of(graph)
    request = sample_requests(run, 1, seed=2)[0]
    (features_CF,) = click_parity.sample_features(head, [request], seed=0)
    together = click_parity.click_graph(session, run, [request], [features_CF])
    reverse = request._replace(candidates=request.candidates[::-1])
    reversed_logits = click_parity.click_graph(session, run, [reverse], [features_CF[::-1]])
    np.testing.assert_allclose(reversed_logits[::-1], together, atol=1e-5)
    alone = request._replace(candidates=request.candidates[:1])
    np.testing.assert_allclose(
        click_parity.click_graph(session, run, [alone], [features_CF[:1]]), together[:1], atol=1e-5
    )


@pytest.mark.parametrize("wrong", [0.01, np.nan])
def test_logits_that_are_not_those_of_torch_are_refused(wrong: float) -> None:
    expected_N = np.linspace(-3, 3, 20, dtype=np.float32)
    got_N = expected_N.copy()
    got_N[7] += wrong
    with pytest.raises(parity.ParityError, match=r"difference to torch is .*at most 0\.001"):
        click_parity.check_exact(got_N, expected_N)


def test_the_head_of_an_fp16_graph_may_have_numbers_too_large_for_fp16(run: Run) -> None:
    checkpoint, head = run.click_backbone(), dict(run.click_head())
    head["mixed.weight"] = head["mixed.weight"] * np.float32(1e7)
    head["mixed.bias"] = head["mixed.bias"] * np.float32(1e7)
    out = head["out.weight"].copy()
    out[:, : len(head["mixed.bias"])] *= 1e-7
    head["out.weight"] = out
    requests = sample_requests(run, 6, seed=1)
    features = click_parity.sample_features(head, requests, seed=0)
    tables = checkpoint.cos_sin(400)
    graph = build_click_model(checkpoint.state, head, checkpoint.shape, tables, real_type="float16")
    got = click_parity.click_graph(parity.session_of(graph), run, requests, features)
    expected = click_parity.click_reference(checkpoint, head, run, requests, features)
    np.testing.assert_allclose(got, expected, atol=0.01)
