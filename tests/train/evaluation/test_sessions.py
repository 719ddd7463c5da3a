"""Real sessions: candidates by their rules, ranks among ties by hand, answers on and off."""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from engine.answering.candidates import key_of
from engine.formats.text import normalise
from train.evaluation import sessions as module
from train.evaluation.baselines import NearestNeighbour, SearchLog
from train.evaluation.sessions import Session
from train.evaluation.traffic import read_mined

SHIPPED = Path("examples/data/sessions.jsonl.gz")
SESSIONS = [
    Session(
        queries=["wireless mouse", "Wireless  Mouse!", "wireless mouse for kids", "garden hose"],
        titles=[["Mice - a Shop"], ["Mice", "More mice"], []],
    ),
    Session(queries=["outdoor lamp", "outdoor lamp cheap"], titles=[["Lamps of all kinds"]]),
    Session(queries=["never went on"]),
]


def test_the_rank_among_ties_is_the_mean_over_their_orders():
    rank = module.expected_reciprocal_rank
    assert rank(np.array([3.0, 1, 2])) == 1.0
    assert rank(np.array([1.0, 1, 2])) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert rank(np.zeros(4)) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert rank(np.array([0.0, 5, 4, 3])) == 1 / 4


def test_a_session_counts_as_the_mean_of_its_steps():
    assert module.by_session(np.array([1.0, 0.0, 0.5]), [4, 4, 9]).tolist() == [0.5, 0.5]


def test_candidates_follow_the_rules(run):
    known = read_mined(run).log()
    cases = module.cases_of(SESSIONS, known)
    # "Wireless  Mouse!" is the same query again: no step.
    assert [(c.asked.query, c.candidates[0]) for c in cases] == [
        ("wireless mouse!", "wireless mouse for kids"),
        ("wireless mouse for kids", "garden hose"),
        ("outdoor lamp", "outdoor lamp cheap"),
    ]
    assert cases[0].asked.session_queries == ("wireless mouse",)
    assert cases[0].answer == "mice; more mice"
    assert cases[1].answer == ""
    for case in cases:
        keys = [key_of(c) for c in case.candidates]
        assert len(set(keys)) == len(keys) == min(50, len(known.counts) + 1)
        assert key_of(case.asked.query) not in keys
    popular = [f"x{i}" for i in range(60)]
    counts = {f"umbrella stand {i}": 1 for i in range(30)} | dict.fromkeys(popular, 9)
    many = SearchLog(Counter(counts), {})
    (case,) = module.cases_of([Session(queries=["umbrella", "blue thing"])], many)
    near = NearestNeighbour(many).suggest("umbrella", 25)
    assert list(case.candidates) == ["blue thing", *near, *sorted(popular)[:24]]


@pytest.fixture(scope="module")
def report(served, run):
    return module.evaluate_sessions(served, run, SESSIONS, report=lambda _: None)


def test_a_whole_evaluation(report, run):
    counts = read_mined(run).counts
    assert (report.num_sessions, report.num_steps) == (2, 3)
    cases = module.cases_of(SESSIONS, read_mined(run).log())
    assert report.known_share == pytest.approx(np.mean([c.candidates[0] in counts for c in cases]))
    mrr = {score.system: score.mrr for score in report.scores}
    assert set(mrr) == {
        "most_popular", "adjacency", "bm25", "tfidf", "encoder", "served", "click_model"
    }  # fmt: skip
    ranks = [
        module.expected_reciprocal_rank(np.array([float(counts[c]) for c in case.candidates]))
        for case in cases
    ]
    assert mrr["most_popular"].mean == pytest.approx((np.mean(ranks[:2]) + ranks[2]) / 2)
    assert {effect.system for effect in report.answers} == {"click_model", "generator", "engine"}
    click = next(e for e in report.answers if e.system == "click_model")
    assert click.without.mean == pytest.approx(mrr["click_model"].mean)
    difference = click.with_answer.mean - click.without.mean
    assert click.difference.mean == pytest.approx(difference)


def test_the_answer_reaches_the_click_model_and_no_answer_changes_nothing(served, run):
    case = module.cases_of(SESSIONS, read_mined(run).log())[0]
    plain = served.click_probabilities("suggestion", case.asked, case.candidates)
    informed = case.asked._replace(answer=case.answer)
    assert not np.allclose(
        plain, served.click_probabilities("suggestion", informed, case.candidates)
    )
    untitled = [Session(queries=s.queries) for s in SESSIONS]
    report = module.evaluate_sessions(served, run, untitled, report=lambda _: None)
    assert all(tuple(effect.difference) == (0.0, 0.0, 0.0) for effect in report.answers)


def test_sessions_without_a_step_and_broken_files_are_refused(served, run, tmp_path):
    with pytest.raises(ValueError, match="no session has two"):
        module.evaluate_sessions(served, run, [Session(queries=["a", "A"])], report=lambda _: None)
    path = tmp_path / "sessions.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"queries": ["a"]}\n{"queries": 3}\n'))
    with pytest.raises(ValueError, match="line 2: not a session"):
        module.read_sessions(path)
    whole = gzip.compress(b'{"queries": ["a"]}\n' * 99)
    path.write_bytes(b"not a session")
    with pytest.raises(ValueError, match="line 1: not a session"):
        module.read_sessions(path)
    for damaged in (whole[:-12], whole[:10] + b"\xff" * 20):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"sessions\.jsonl\.gz: cannot be read"):
            module.read_sessions(path)


def test_sessions_are_read_plain_or_gzip(tmp_path):
    lines = b'{"queries": ["a", "b"]}\n{"queries": ["c"], "titles": [["t"]]}\n'
    sessions = [Session(queries=["a", "b"]), Session(queries=["c"], titles=[["t"]])]
    for name, content in (("plain.jsonl", lines), ("packed", gzip.compress(lines))):
        (tmp_path / name).write_bytes(content)
        assert module.read_sessions(tmp_path / name) == sessions


def test_the_shipped_sessions_are_small_and_in_the_form_of_queries():
    assert SHIPPED.stat().st_size < 100_000
    shipped = module.read_sessions(SHIPPED)
    assert len(shipped) > 200
    for session in shipped:
        assert [normalise(q) for q in session.queries] == session.queries
        assert len(session.titles) in (len(session.queries) - 1, len(session.queries))


def test_the_shipped_web_queries_are_held_out():
    data = Path("examples/data")
    with gzip.open(data / "heldout_web.txt.gz") as web, gzip.open(data / "heldout.txt.gz") as every:
        assert set(web) < set(every)
