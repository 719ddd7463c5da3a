"""Simulated users, and an engine's feedback on its way back into the log."""

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.closed_loop.__main__ import parse, worth_of
from benchmarks.closed_loop.training import keep, write_feedback
from benchmarks.closed_loop.users import Answered, Asked, Users
from engine.feedback.attribution import AttributionToken, KeyRing, Shown, Source
from engine.feedback.events import Event, Kind
from engine.feedback.log import FeedbackLog
from train.settings import SimulateConfig
from train.simulator import simulate

MADE_MS = 1_800_000_000_000
SETTINGS = SimulateConfig(num_queries=1500, num_searches=4000, num_users=300, num_requests=600)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world") / "simulated"
    simulate(
        directory,
        queries_path=Path(SETTINGS.queries),
        heldout_path=Path(SETTINGS.heldout),
        num_searches=SETTINGS.num_searches,
        num_users=SETTINGS.num_users,
        num_requests=SETTINGS.num_requests,
        num_logged_queries=SETTINGS.num_queries,
    )
    return directory


@pytest.fixture(scope="module")
def users(simulated) -> Users:
    return Users(simulated, SETTINGS, seed=0)


def test_a_second_loop_is_told_how_to_name_its_directory(tmp_path, capsys):
    made_by_make = ["--run", "run", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        parse(made_by_make)
    assert 'exists; name another directory (make closed-loop LOOP="--out DIR")' in (
        capsys.readouterr().err
    )
    assert parse([*made_by_make, "--out", str(tmp_path / "new")]).out == tmp_path / "new"


@pytest.mark.slow
def test_users_of_another_world_than_the_logs_are_refused(simulated):
    with pytest.raises(ValueError, match="is not the world"):
        Users(simulated, SETTINGS, seed=1)


@pytest.mark.slow
def test_questions_are_of_fresh_sessions_and_the_same_for_the_same_seed(users):
    asked = users.questions(400, seed=5)
    assert len(asked) == 400
    assert asked == users.questions(400, seed=5)
    assert asked != users.questions(400, seed=6)
    assert {a.scenario for a in asked} == {"suggestion", "completion", "clarification"}
    assert any(a.session_queries for a in asked)
    assert all(a.query for a in asked)


@pytest.mark.slow
def test_questions_of_a_user_and_of_an_unseen_query_are_one_unit(users):
    asked = users.questions(400, seed=5)
    assert [a.unit for a in asked] == [a.user for a in asked]
    assert len({a.unit for a in asked}) < len(asked)
    unseen = users.unseen(["red shoes", "garden lamp", "phone case"], 3, seed=0)
    assert sorted(a.unit for a in unseen) == sorted(["red shoes", "garden lamp", "phone case"] * 3)


def test_intervals_of_a_loop_are_no_narrower_for_questions_that_go_together():
    rng = np.random.default_rng(0)
    own_U, first_U = rng.random((2, 50))
    asked = [Asked("suggestion", "q", (), "", str(unit)) for unit in range(50)]
    once = worth_of(asked, own_U, first_U)
    again = worth_of(asked * 3, np.tile(own_U, 3), np.tile(first_U, 3))
    assert np.ravel(again.true_ctr) == pytest.approx(np.ravel(once.true_ctr))
    assert np.ravel(again.gain) == pytest.approx(np.ravel(once.gain))


@pytest.mark.slow
def test_clicks_come_as_often_as_the_truth_says(users):
    asked = [a for a in users.questions(2000, seed=7) if a.scenario == "suggestion"]
    popular = [a.query for a in asked]
    answered = [Answered(a, [popular[i - 1], popular[i - 2]], "") for i, a in enumerate(asked)]
    rate = users.click_rates(answered, num_places=2).mean() * 2
    clicked = np.mean([sum(row) for s in range(20) for row in users.clicks(answered, seed=s)])
    assert clicked == pytest.approx(rate, rel=0.15)
    assert users.click_rates(answered, num_places=4).mean() == pytest.approx(rate / 4)


@pytest.mark.slow
def test_an_empty_list_is_never_clicked(users):
    (asked,) = users.questions(1, seed=8)
    empty = Answered(asked, [], "")
    assert users.clicks([empty], seed=0) == [[]]
    assert users.click_rates([empty], num_places=5).tolist() == [0]


def test_a_round_keeps_what_it_does_not_learn(tmp_path):
    before = tmp_path / "before"
    for name in ("encoder", "index", "click_model"):
        (before / name).mkdir(parents=True)
        (before / name / "weights").write_text(name)
    files = ["tokenizer.json", "config.toml"]
    for name in files:
        (before / name).write_text(name)
    keep(before, tmp_path / "after")
    assert {p.name for p in (tmp_path / "after").iterdir()} == {"encoder", "index", *files}
    assert (tmp_path / "after/index/weights").read_text() == "index"


async def write_events(directory: Path, tokens: list[str]) -> None:
    """Every text was seen, and every fifth clicked."""
    log = FeedbackLog(directory)
    for i, token in enumerate(tokens):
        kinds = [Kind.IMPRESSION, Kind.CLICK] if i % 5 == 0 else [Kind.IMPRESSION]
        await log.append(
            [
                Event(
                    event_id=f"{i} {kind}",
                    kind=kind,
                    position=1,
                    time_unix_ms=MADE_MS + i,
                    user_key=None,
                    token=token,
                )
                for kind in kinds
            ]
        )
    log.close()


async def test_feedback_of_an_engine_joins_the_log_within_its_time(tmp_path):
    keys = KeyRing(active_key_id="k", secrets={"k": b"x" * 16})
    tokens = [
        AttributionToken(
            request_id=f"r{i}",
            bundle_id="b",
            time_unix_ms=MADE_MS + i,
            scenario="suggestion",
            query="q",
            session_id="",
            suggestions=(Shown(text=f"text {i}", sources=Source.GENERATED),),
        ).seal(keys)
        for i in range(50)
    ]
    await write_events(tmp_path / "feedback", tokens)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    times = [start, start + datetime.timedelta(days=30)]
    searches = tmp_path / "searches.parquet"
    pq.write_table(pa.table({"time": pa.array(times, pa.timestamp("us", tz="UTC"))}), searches)
    out = tmp_path / "impressions.parquet"
    write_feedback(tmp_path / "feedback", searches, out, seed=0)
    table = pq.read_table(out).to_pylist()
    assert sorted(row["text"] for row in table) == sorted(f"text {i}" for i in range(50))
    assert all(times[0] <= row["time"] <= times[1] for row in table)
    assert len({row["time"] for row in table}) == 50
    assert all(row["shown"] for row in table)
    assert [row["clicked"] for row in table].count(True) == 10
