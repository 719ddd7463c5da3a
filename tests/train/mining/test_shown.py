"""What was shown, and clicked or not: what of it is kept, and how it is split and checked."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import ibis
import msgspec
import pytest

from engine.formats.manifest import ScenarioSpec
from tests.train.mining.conftest import START, Write, configured, mined, rows, search, shown
from train.mining import logs
from train.mining.mine import mine
from train.mining.shown import check_mined_clicks


def test_impressions_of_robots_are_left_out(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search(u, 0, "tea") for u in ("u1", "u2")]
    searches += [search(f"r{n}", 60 + i / 10, "pills") for n in range(3) for i in range(6)]
    searches += [search(f"r{n}", 300, "tea") for n in range(3)]  # later, a session of its own

    def at(minute: float) -> dict[str, Any]:
        return {"time": START + timedelta(minutes=minute)}

    impressions = [shown("u1", "tea"), shown("nobody", "tea", session_id=None, **at(60))]
    impressions += [shown(f"r{n}", "cheap pills", **at(61)) for n in range(3)]
    impressions += [
        shown("r0", "tea", request_id="before", **at(31)),
        shown("r0", "tea", request_id="long before", **at(29)),
        shown("r0", "tea", request_id="after", **at(90)),
        shown("r0", "tea", request_id="long after", **at(91)),
    ]
    out, summary = mined(write_log_tables, tmp_path, searches, impressions, max_session_searches=5)
    found = {(r["request_id"], r["text"]) for r in rows(out, "impressions")}
    assert found == {(r, "tea") for r in ("r-u1", "r-nobody", "long before", "long after")}
    assert summary.dropped == {"search_of_robot": 18, "impression_of_robot": 5}
    out, _ = mined(write_log_tables, tmp_path, searches, impressions, max_session_searches=0)
    assert len(rows(out, "impressions")) == len(impressions)


def test_impressions_keep_what_is_anonymous(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search(u, i, q) for u in ("u1", "u2") for i, q in enumerate(["Tea", "tea pot"])]
    searches += [search("u1", 9, "private")]
    session = [{"kind": "session", "text": t} for t in ("TEA pot", "private")]
    other = [{"kind": "answer", "text": "Tea is hot."}, {"kind": "strange", "text": "tea"}]
    impressions = [
        shown("u1", "tea pot", side_information=session + other),
        shown("u2", "tea pot", side_information=other, clicked=False),
        shown("u1", "private", position=2),
        shown("u1", "new text", position=3),
        shown("u2", "new text", position=3),
        shown("u1", "seen often", position=4),
        shown("u2", "seen often", position=4, clicked=False),
        shown("u3", "tea", query="private", request_id="r3"),
        shown("u4", "tea", shown=False, request_id="r4"),
        shown("u4", "tea", scenario="unheard of", request_id="r5"),
    ]
    out, summary = mined(write_log_tables, tmp_path, searches, impressions)
    found = rows(out, "impressions")
    assert {(r["request_id"], r["text"]) for r in found} == {
        ("r-u1", "tea pot"),
        ("r-u2", "tea pot"),
        ("r-u1", "new text"),
        ("r-u2", "new text"),
    }
    first = next(r for r in found if r["request_id"] == "r-u1")
    assert first["side_information"] == [
        {"kind": "session", "text": "tea pot"},
        {"kind": "answer", "text": "tea is hot."},
    ]
    assert summary.num_clicks == 3
    assert summary.dropped["impression_text_refused_or_below_k"] == 3
    assert summary.dropped["impression_query_refused_or_below_k"] == 1
    assert summary.dropped["impression_not_shown"] == 1
    assert summary.dropped["impression_of_unknown_scenario"] == 1


def test_impressions_of_other_scenarios_than_the_configs_are_refused_by_name(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search(u, 0, "tea") for u in ("u1", "u2")]
    impressions = [shown(u, "tea", scenario="autocomplete") for u in ("u1", "u2", "u3")]
    impressions.append(shown("u4", "tea", scenario="related"))
    with pytest.raises(
        ValueError, match=r"has suggestion, .*most rows are of autocomplete, related"
    ):
        mined(write_log_tables, tmp_path, searches, impressions)


def test_a_typed_prefix_must_start_an_anonymous_query(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search(u, 0, "tea pot") for u in ("u1", "u2")] + [search("u1", 1, "team secret")]
    impressions = [
        shown("u1", "tea pot", scenario="completion", query=q, request_id=q)
        for q in ("te", "Tea ", "team", "x")
    ]
    out, _ = mined(write_log_tables, tmp_path, searches, impressions)
    assert {r["query"] for r in rows(out, "impressions")} == {"te", "tea "}


def test_auxiliary_text_needs_k_readers(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search(u, 0, "tea") for u in ("u1", "u2")]
    impressions = [
        shown("u1", "tea", scenario="clarification", auxiliary_text="Which tea?"),
        shown("u2", "tea", scenario="clarification", auxiliary_text="Which tea?"),
        shown("u3", "tea", scenario="clarification", auxiliary_text="Which tea, Bob?"),
    ]
    out, _ = mined(write_log_tables, tmp_path, searches, impressions)
    texts = {r["request_id"]: r["auxiliary_text"] for r in rows(out, "impressions")}
    assert texts == {"r-u1": "which tea?", "r-u2": "which tea?", "r-u3": None}


def test_position_ctr_is_relative_to_the_first_position(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search(f"u{i}", 0, "tea") for i in range(2)]
    impressions = [
        shown(f"u{i}", "tea", request_id=f"r{i}", position=p, clicked=i < 20 // p)
        for i in range(40)
        for p in (1, 2, 4)
    ]
    out, summary = mined(write_log_tables, tmp_path, searches, impressions)
    scenarios = msgspec.json.decode((out / "scenarios.json").read_bytes(), type=list[ScenarioSpec])
    assert scenarios[0].position_ctr == [1, 0.5, 0.5, 0.25]
    assert scenarios[1].position_ctr[1] < 1
    assert summary.position_ctr_from == "logs"


def test_what_a_generator_wrote_from_public_text_stays_below_k(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search(u, 0, q) for u in ("u1", "u2", "u3") for q in ("tea", "tea pot")]
    secret = [{"kind": "session", "text": "my diagnosis"}]
    other = [{"kind": "answer of a bundle of before", "text": "my diagnosis"}]
    known = [{"kind": "session", "text": "tea pot"}]
    written = {"source": "generated", "bundle_id": "b1", "clicked": False}
    impressions = [
        *(shown(u, "tea", request_id=f"r-{u}") for u in ("u1", "u2", "u3")),
        shown("u1", "tea for two", request_id="public", side_information=known, **written),
        shown("u1", "tea for three", request_id="session", side_information=secret, **written),
        shown("u1", "tea for ten", request_id="kind", side_information=other, **written),
        shown("u1", "tea for nine", request_id="unknown", side_information=None, **written),
        shown(
            "u1",
            "tea for four",
            request_id="query",
            side_information=[],
            **{**written, "query": "my diagnosis"},
        ),
        shown(
            "u1",
            "tea for five",
            request_id="typed",
            side_information=[],
            **{**written, "source": "log"},
        ),
        shown(
            "u1",
            "tea for six",
            request_id="foreign",
            side_information=[],
            **{**written, "bundle_id": None},
        ),
        shown(
            "u1",
            "tea for seven",
            request_id="empty",
            side_information=[],
            **{**written, "bundle_id": ""},
        ),
    ]
    out, _ = mined(write_log_tables, tmp_path, searches, impressions)
    assert {r["text"] for r in rows(out, "impressions")} == {"tea", "tea for two"}
    queries = {r["text"] for r in rows(out, "queries")}
    assert queries == {"tea", "tea pot"}  # shown, but nobody's search


def test_logs_that_no_click_model_can_learn_from_are_told_once_mined(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search(u, day * 1440, "tea") for u in ("u1", "u2") for day in range(10)]
    late = {"time": START + timedelta(days=9, hours=1)}
    train = [shown("u1", "tea"), shown("u2", "tea", clicked=False)]
    valid = [shown(f"v{i}", "tea", clicked=i == 0, **late) for i in range(2)]
    unclicked = [shown(f"u{i}", "tea", clicked=False) for i in range(2)]
    for why, impressions in {
        "all of the 1 shown impressions of the valid split": [*train, valid[0]],
        "none of the 2 shown impressions of the train split": [*unclicked, *valid],
    }.items():
        out, _ = mined(write_log_tables, tmp_path, searches, impressions, valid_share=0.5)
        with pytest.raises(ValueError, match=why):
            check_mined_clicks(out)
    out, _ = mined(write_log_tables, tmp_path, searches, train + valid)
    with pytest.raises(ValueError, match="the valid split has no impressions"):
        check_mined_clicks(out)
    out, _ = mined(write_log_tables, tmp_path, searches, train + valid, valid_share=0.5)
    check_mined_clicks(out)
    out, _ = mined(write_log_tables, tmp_path, searches, [])
    check_mined_clicks(out)


def test_impressions_younger_than_all_searches_are_split_by_their_own_times(
    write_log_tables: Write, tmp_path: Path
) -> None:
    """As feedback on a bundle is that was trained on these searches."""
    searches = [search(u, day * 1440, "tea") for u in ("u1", "u2") for day in range(10)]
    impressions = [
        shown(f"u{i}", "tea", request_id=f"r{i}", time=START + timedelta(days=20 + i))
        for i in range(10)
    ]
    out, _ = mined(write_log_tables, tmp_path, searches, impressions, valid_share=0.2)
    found = sorted(rows(out, "impressions"), key=lambda row: row["time"])
    assert [row["split"] for row in found] == ["train"] * 8 + ["valid"] * 2


def a_month_of_searches(first_day: int = 0, num_days: int = 30) -> list[dict]:
    """Two users a day, who go on to one query in the first 8 days and to another one later."""
    return [
        search(user, day * 1440 + minute, query, session=f"s{day}-{user}")
        for day in range(first_day, first_day + num_days)
        for user in ("u1", "u2")
        for minute, query in enumerate(["tea", "tea pot" if day < 8 else "cake"])
    ]


def ten_days_of_impressions() -> list[dict]:
    """One a day, the last two of which are for validation if a fifth is."""
    return [
        shown(f"u{day}", "tea", request_id=f"r{day}", time=START + timedelta(days=day))
        for day in range(10)
    ]


def test_searches_from_the_first_held_out_impression_on_are_held_out_too(
    write_log_tables: Write, tmp_path: Path
) -> None:
    """They may come of the clicks that are to be predicted."""
    searches, impressions = a_month_of_searches(), ten_days_of_impressions()
    out, _ = mined(write_log_tables, tmp_path, searches, impressions, valid_share=0.2)
    found = sorted(rows(out, "impressions"), key=lambda row: row["time"])
    assert [row["split"] for row in found] == ["train"] * 8 + ["valid"] * 2
    counts = {r["text"]: r["num_searches_before_cut"] for r in rows(out, "queries")}
    assert counts == {"cake": 0, "tea": 16, "tea pot": 16}
    pairs = [(r["source"], r["target"], r["num_pairs"]) for r in rows(out, "pairs")]
    assert pairs == [("tea", "tea pot", 16)]
    contexts = {(r["target"], r["split"]): r["weight"] for r in rows(out, "contexts")}
    assert contexts == {("tea pot", "train"): 16, ("cake", "valid"): 44}


def test_impressions_older_than_all_searches_are_refused_unless_none_is_held_out(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches, impressions = a_month_of_searches(first_day=9), ten_days_of_impressions()
    with pytest.raises(ValueError, match="held-out impressions begin at 2024-01-09 00:00 UTC"):
        mined(write_log_tables, tmp_path, searches, impressions, valid_share=0.2)
    assert not list((tmp_path / "run").rglob("*"))
    out, summary = mined(write_log_tables, tmp_path, searches, impressions, valid_share=0.0)
    assert summary.num_impressions == 10
    assert all(r["num_searches_before_cut"] for r in rows(out, "queries"))


@pytest.mark.parametrize("num_days", [10, 30])
def test_held_out_impressions_that_leave_few_searches_are_warned_of(
    write_log_tables: Write, tmp_path: Path, num_days: int
) -> None:
    tables = write_log_tables(a_month_of_searches(num_days=num_days), ten_days_of_impressions())
    said: list[str] = []
    mine(
        configured(valid_share=0.2),
        searches=str(tables.searches),
        impressions=str(tables.impressions),
        out=tmp_path / "run/mined",
        report=said.append,
    )
    warned = any("models learn from 32 of 120" in line for line in said)
    assert warned == (num_days == 30)


def test_impressions_at_impossible_positions_are_left_out_and_counted(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search(u, 0, "tea") for u in ("u1", "u2")]
    impressions = [
        shown("u1", "tea", position=position, request_id=f"r{position}")
        for position in (1, 1000, 1001, 10**9)
    ]
    out, summary = mined(write_log_tables, tmp_path, searches, impressions)
    assert sorted(r["position"] for r in rows(out, "impressions")) == [1, 1000]
    assert summary.dropped == {"impression_position_beyond_1000": 2}
    connection = ibis.duckdb.connect()
    alone = logs.open_impressions(connection, str(tmp_path / "logs/impressions.parquet"))
    assert sorted(alone.position.to_pyarrow().to_pylist()) == [1, 1000]
    connection.disconnect()
