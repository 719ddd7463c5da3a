"""Impressions are scored exactly as the engine serves them, and read as they were logged."""

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.answering.answer import Question
from engine.answering.pipeline import Pipeline
from engine.config import Config
from engine.execution.bundle import Bundle, load_bundle
from engine.execution.runtime import Runtime
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Probe
from train.evaluation.click_rows import LoggedRequest, Scorer, read_requests, validation_start
from train.evaluation.served import LeftOut

CLOCK = MonotonicClock()
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class FlatTruth:
    """A truth for which everything is as good as its position."""

    def list_click_probabilities(
        self, scenario, queries, listings, *, sessions=None, questions=None
    ):
        del scenario, queries, sessions, questions
        return [1 / np.arange(2.0, len(listing) + 2) for listing in listings]

    def attraction_after_fatigue(
        self, scenario, queries, listings, *, sessions=None, questions=None
    ):
        del scenario, queries, sessions, questions
        return np.full((len(listings), max(map(len, listings))), 0.5)


@pytest.fixture(scope="module")
def runtime():
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, runtime: Runtime) -> Bundle:
    return load_bundle(tiny_bundle, runtime)


@pytest.mark.parametrize(
    ("scenario", "query", "session"),
    [
        ("suggestion", "wireless mouse", ("gaming mouse", "usb hub")),
        ("suggestion", "never searched before", ()),
        ("completion", "wireless e", ("baby lamp",)),
        ("completion", "zq", ()),
        ("clarification", "garden chair", ()),
    ],
)
async def test_scores_are_those_that_the_engine_serves(
    bundle: Bundle, runtime: Runtime, scenario: str, query: str, session: tuple[str, ...]
) -> None:
    pipeline = Pipeline(bundle, runtime, Config(), CLOCK)
    question = Question(
        scenario=bundle.scenarios[scenario],
        query=query,
        session_queries=session,
        num_suggestions=6,
        deadline=Deadline.after(30, CLOCK),
    )
    shown = (await pipeline.recommend(question, Probe(CLOCK))).suggestions
    await pipeline.worker.close()
    requests = [
        LoggedRequest(scenario, query, list(session), "", [s.text for s in shown[:n]],
                      ["log"] * n, [False] * n)
        for n in (len(shown), 2)
    ]  # fmt: skip
    rows = Scorer(bundle).scored(scenario, requests, FlatTruth())
    served = [s.click_probability for s in shown]
    assert rows.served_N == pytest.approx([*served, *served[:2]], rel=1e-4)
    assert rows.position_N.tolist() == [*range(1, len(shown) + 1), 1, 2]
    assert rows.request_N.tolist() == [0] * len(shown) + [1, 1]
    assert rows.query_U.tolist() == [query, query]
    assert rows.true_N[-2:].tolist() == [1 / 2, 1 / 3]
    assert rows.attraction_N.tolist() == [0.5] * len(rows.true_N)
    assert len(set(served)) > 1


def write_impressions(path: Path) -> None:
    rows = [
        {
            "request_id": f"r{number}",
            "time": START + datetime.timedelta(hours=number),
            "scenario": "suggestion",
            "query": f"q{number}",
            "side_information": [
                {"kind": "session", "text": "before"},
                {"kind": "answer", "text": "said"},
            ],
            "position": position + 1,
            "text": f"t{position}",
            "source": "generated" if position else "log",
            "shown": position < 2,
            "clicked": position == 1,
            "auxiliary_text": None,
        }
        for number in range(6)
        for position in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows[::-1]), path)


def test_shown_rows_of_an_interval_are_read_by_request_and_position(tmp_path: Path) -> None:
    path = tmp_path / "impressions.parquet"
    write_impressions(path)
    cut = (START + datetime.timedelta(hours=4)).replace(tzinfo=None)
    late = read_requests(path, since=cut)
    assert [r.query for r in late] == ["q4", "q5"]
    expected = LoggedRequest(
        "suggestion", "q4", ["before"], "", ["t0", "t1"], ["log", "generated"], [False, True]
    )
    assert late[0] == expected
    assert [r.query for r in read_requests(path, until=cut)] == ["q0", "q1", "q2", "q3"]
    some = read_requests(path, max_requests=3)
    assert len(some) == 3
    assert some == read_requests(path, max_requests=3)


def test_validation_starts_where_the_mined_table_says(clicked_run: Path, tmp_path: Path) -> None:
    mined = clicked_run / "mined"
    rows = pq.read_table(mined / "impressions.parquet", columns=["time", "split"]).to_pylist()
    first = min(r["time"] for r in rows if r["split"] == "valid")
    assert validation_start(mined) == first
    with pytest.raises(ValueError, match="mined without impressions"):
        validation_start(tmp_path)
    table = pq.read_table(mined / "impressions.parquet")
    column = table.column_names.index("split")
    table = table.set_column(column, "split", pa.array(["train"] * table.num_rows))
    pq.write_table(table, tmp_path / "impressions.parquet")
    with pytest.raises(LeftOut, match="no impressions were held out"):
        validation_start(tmp_path)
