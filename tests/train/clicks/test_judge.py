"""The judge against the click model read candidate by candidate, with features made by hand."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from engine.formats.features import candidate_features
from engine.formats.prompt import SESSION, SideInformation
from tests.train.conftest import topic_queries
from train.clicks.calibration import Platt
from train.clicks.judge import ClickJudge, Judged
from train.clicks.model import load_click_model
from train.clicks.token_statistics import count_tokens
from train.clicks.uncertainty import load_uncertainty, save_uncertainty
from train.generation.generator import read_prompts
from train.retrieval.index import read_edges

TOPIC = topic_queries()[0]
QUERY, KNOWN, OTHER = TOPIC[0], TOPIC[1], topic_queries()[7][2]
SIDE = [SideInformation(SESSION, TOPIC[3])]


@pytest.fixture(scope="module")
def judge(trained_run: Path) -> ClickJudge:
    return ClickJudge(trained_run, max_edges=32)


def by_hand(run: Path, asked: Judged, popularity: list[float], npmi: list[float]) -> float:
    """p(click | seen) of the only text of a question."""
    (text,) = asked.texts
    prompts = read_prompts(run)
    renderer = prompts.renderer
    context = renderer.click_context(asked.scenario, asked.query, asked.side_information)
    ids = renderer.vocabulary.encode(text)
    (spec,) = (s for s in prompts.scenarios if s.name == asked.scenario)
    statistics = count_tokens(run, renderer.vocabulary)
    figures_CT = statistics.figures(renderer.vocabulary.encode(asked.query), [ids])
    features_CF = candidate_features(spec, asked.query, [text], popularity, npmi, figures_CT)
    features = torch.from_numpy(features_CF)
    with torch.no_grad():
        logit = load_click_model(run / "click_model")(
            torch.tensor([context]),
            torch.ones(1, len(context), dtype=torch.int64),
            torch.tensor([[ids]]),
            torch.ones(1, 1, len(ids), dtype=torch.int64),
            features[None],
        )
    known, unknown = load_uncertainty(run / "click_model").calibration[asked.scenario]
    platt = known if popularity[0] else unknown
    return float(1 / (1 + np.exp(-(platt.slope * logit.item() + platt.intercept))))


def searches_of(run: Path, text: str) -> float:
    table = pq.read_table(run / "mined/queries.parquet")
    counts = dict(zip(table["text"].to_pylist(), table["num_searches"].to_pylist(), strict=True))
    return float(counts.get(text, 0))


def npmi_of(run: Path, source: str, target: str) -> float:
    texts = pq.read_table(run / "mined/queries.parquet")["text"].to_pylist()
    edges = read_edges(run, texts, 32)
    row = texts.index(source)
    found = edges.rows[edges.offsets[row] : edges.offsets[row + 1]].tolist()
    place = found.index(texts.index(target))
    return float(edges.npmi[edges.offsets[row] + place])


def test_it_says_what_the_model_says_of_each_text(judge: ClickJudge, trained_run: Path) -> None:
    asked = [
        Judged("suggestion", QUERY, SIDE, [KNOWN, "never heard of", OTHER]),
        Judged("suggestion", OTHER, [], [KNOWN]),
    ]
    found = judge(asked, level=0.8)
    assert found[0].is_known_C.tolist() == [True, False, True]
    association = npmi_of(trained_run, QUERY, KNOWN)
    assert association > 0
    for p, text, npmi in zip(
        found[0].p_seen_C, asked[0].texts, (association, 0.0, 0.0), strict=True
    ):
        alone = asked[0]._replace(texts=[text])
        expected = by_hand(trained_run, alone, [searches_of(trained_run, text)], [npmi])
        assert p == pytest.approx(expected, rel=1e-4)
    assert found[1].p_seen_C[0] == pytest.approx(
        by_hand(trained_run, asked[1], [searches_of(trained_run, KNOWN)], [0.0]), rel=1e-4
    )


def test_a_cold_question_has_no_associations(judge: ClickJudge, trained_run: Path) -> None:
    asked = Judged("suggestion", QUERY, SIDE, [KNOWN, OTHER], is_cold=True)
    (found,) = judge([asked], level=0.8)
    expected = by_hand(
        trained_run, asked._replace(texts=[KNOWN]), [searches_of(trained_run, KNOWN)], [0.0]
    )
    assert found.p_seen_C[0] == pytest.approx(expected, rel=1e-4)


def test_lower_bounds_fall_with_the_level_and_are_lower_for_unknown_texts(
    judge: ClickJudge,
) -> None:
    asked = [Judged("suggestion", QUERY, SIDE, [KNOWN, OTHER, "never heard of", "nor of this"])]
    (low,), (high,) = judge(asked, level=0.6), judge(asked, level=0.9)
    assert (high.lower_C < low.lower_C).all()
    assert (low.lower_C < low.p_seen_C).all()
    share = high.lower_C / high.p_seen_C
    assert share[~high.is_known_C].max() < share[high.is_known_C].min()


def test_questions_do_not_change_one_another(judge: ClickJudge) -> None:
    asked = [Judged("suggestion", t[0], SIDE, t[1:]) for t in topic_queries()[:20]]
    together = judge(asked, level=0.8)
    for one, found in zip(asked[:5], together, strict=False):
        (alone,) = judge([one], level=0.8)
        assert alone.p_seen_C == pytest.approx(found.p_seen_C, rel=1e-4)


def test_nothing_asked_nothing_said(judge: ClickJudge) -> None:
    assert judge([], level=0.8) == []


def test_what_the_log_knows_is_read_once(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    judge = ClickJudge(run, max_edges=32)
    asked = [Judged("suggestion", QUERY, SIDE, [KNOWN, "never heard of"])]
    (before,) = judge(asked, level=0.8)
    shutil.rmtree(run / "mined")
    (after,) = judge(asked, level=0.8)
    assert after.p_seen_C.tolist() == before.p_seen_C.tolist()


def test_a_scenario_that_it_cannot_judge_leaves_the_others(
    trained_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    uncertainty = load_uncertainty(run / "click_model")
    uncertainty.calibration["completion"] = (Platt(0.0, -2.0), Platt(0.0, -3.0))
    (run / "click_model/uncertainty.safetensors").unlink()
    save_uncertainty(uncertainty, run / "click_model")
    judge = ClickJudge(run, max_edges=32)
    dull = Judged("completion", QUERY, SIDE, [KNOWN, OTHER])
    same, differing = judge([dull, dull._replace(scenario="suggestion")], level=0.99)
    assert same.p_seen_C[0] == same.p_seen_C[1]
    assert differing.lower_C[0] != differing.lower_C[1]
    with pytest.raises(ValueError, match="every completion text the same probability"):
        judge([dull], level=0.99)
