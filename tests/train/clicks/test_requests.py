"""Which requests are read of a log, and in which order what they carry."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from engine.answering.answer import Question
from engine.answering.request import side_information
from engine.formats.prompt import ANSWER, SESSION, SideInformation
from engine.scheduling.deadline import Deadline
from tests.engine.conftest import ManualClock
from train.clicks.data import RequestReader, read_requests
from train.clicks.judge import Judged, table_of
from train.generation.generator import read_prompts
from train.models.tokenizer import train_tokenizer


def test_side_information_is_read_in_the_order_of_serving(mined_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(mined_run, run)
    path = run / "mined/prompt.json"
    prompt = json.loads(path.read_text())
    prompt["side_information_kinds"] += ["place", "title"]
    path.write_text(json.dumps(prompt))
    queries = pq.read_table(run / "mined/queries.parquet")
    scenarios = json.loads((run / "mined/scenarios.json").read_text())
    train_tokenizer(
        queries["text"].to_pylist(),
        queries["num_searches"].to_pylist(),
        size=1024,
        scenarios=[s["name"] for s in scenarios],
        kinds=prompt["side_information_kinds"],
    ).save(run / "tokenizer.json")
    renderer = read_prompts(run).renderer
    scenario = read_prompts(run).scenarios[0]
    query, text, first, then = queries["text"].to_pylist()[:4]
    title, place = SideInformation("title", text), SideInformation("place", query)
    asked = Question(
        scenario=scenario,
        query=query,
        session_queries=(first, then),
        answer=text,
        side_information=(place, title),  # most important first
        num_suggestions=1,
        deadline=Deadline.after(1, ManualClock()),
    )
    served = renderer.click_context(scenario.name, query, side_information(asked))
    sessions = [SideInformation(SESSION, first), SideInformation(SESSION, then)]
    answer = SideInformation(ANSWER, text)
    reader = RequestReader(run, max_edges=50)
    for logged in (
        [title, place, answer, *sessions],
        [*sessions, answer, title, place],
        [title, sessions[0], answer, place, sessions[1]],
    ):
        read = reader.of(table_of([Judged(scenario.name, query, logged, [text])]))
        assert list(read.contexts[0]) == served


def test_of_a_large_log_some_requests_are_read_whole_and_always_the_same(
    clicked_run: Path,
) -> None:
    lines: list[str] = []
    whole = read_requests(clicked_run, max_edges=50, max_requests=3000, report=lines.append)
    assert whole is not None
    assert len(whole) == 3000
    assert not lines
    some = read_requests(clicked_run, max_edges=50, max_requests=500, report=lines.append)
    assert some is not None
    assert lines == ["click_model.max_requests is 500: so many of 3000 requests are read"]
    assert len(some) == 500
    assert len(some.clicked_N) == 500 * 5
    assert 0.1 < some.is_valid_R.mean() < 0.3  # of a fifth: from all of the log's time
    fewer = read_requests(clicked_run, max_edges=50, max_requests=250)
    again = read_requests(clicked_run, max_edges=50, max_requests=500)
    assert fewer is not None
    assert again is not None
    assert again.contexts == some.contexts
    shown = {tuple(context) for context in some.contexts}
    assert all(tuple(context) in shown for context in fewer.contexts)
