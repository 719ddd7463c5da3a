import asyncio
import os
import random
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from engine.cli import app
from engine.feedback import impressions
from engine.feedback.attribution import AttributionToken, KeyRing, Shown, Source
from engine.feedback.events import Event, Kind
from engine.feedback.impressions import to_impressions
from engine.feedback.log import FeedbackLog
from engine.feedback.segments import segments

KEYS = KeyRing(active_key_id="k", secrets={"k": b"s" * 32})
MADE_MS = 1_772_323_200_000  # 2026-03-01, on the hour
HOUR_MS = 3_600_000


def token(request_id: str = "r1", num_texts: int = 3, **changes: object) -> AttributionToken:
    made = AttributionToken(
        request_id=request_id,
        bundle_id="bundle-1",
        time_unix_ms=MADE_MS,
        scenario="suggestion",
        query="wireless earbuds",
        session_id="s1",
        suggestions=tuple(
            Shown(text=f"earbuds {i}", sources=Source.LOG | Source.GENERATED, propensity=0.5)
            for i in range(num_texts)
        ),
    )
    return replace(made, **changes)


def event(
    event_id: str,
    kind: Kind = Kind.CLICK,
    position: int = 1,
    *,
    of: AttributionToken | None = None,
    delay_s: float = 1,
    user_key: str | None = "u1",
) -> Event:
    of = of or token()
    return Event(
        event_id=event_id,
        kind=kind,
        position=position,
        time_unix_ms=of.time_unix_ms + int(delay_s * 1000),
        user_key=user_key,
        token=of.seal(KEYS),
    )


def logged(directory: Path, *batches: list[Event]) -> list[Path]:
    """Writes each batch into a segment of its own; returns the segments."""
    for batch in batches:
        log = FeedbackLog(directory)
        asyncio.run(log.append(batch))
        log.close()
    return segments(directory)


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_side_information_is_empty_where_the_token_says_so_and_else_unknown(tmp_path):
    batch = [event("1", of=token("r1")), event("2", of=token("r2", is_public=True))]
    to_impressions(logged(tmp_path / "log", batch), tmp_path / "out.parquet")
    found = {r["request_id"]: r["side_information"] for r in rows(tmp_path / "out.parquet")}
    assert found == {"r1": None, "r2": []}


def test_what_led_in_is_in_every_row_of_its_panel(tmp_path):
    batch = [event("1", of=token("r1", 2, auxiliary_text="what for?")), event("2", of=token("r2"))]
    to_impressions(logged(tmp_path / "log", batch), tmp_path / "out.parquet")
    found = [(r["request_id"], r["auxiliary_text"]) for r in rows(tmp_path / "out.parquet")]
    assert found == [("r1", "what for?")] * 2 + [("r2", None)] * 3


def test_there_is_one_row_per_request_and_position(tmp_path):
    batch = [
        event("1", Kind.IMPRESSION, 1),
        event("2", Kind.IMPRESSION, 2),
        event("3", Kind.CLICK, 2),
        event("3", Kind.CLICK, 2),
        event("4", Kind.CLICK, 2, delay_s=5),
        event("x", Kind.IMPRESSION, 1, of=token("r2", 1), user_key=None),
    ]
    counts = to_impressions(logged(tmp_path / "log", batch), tmp_path / "out.parquet")

    assert counts == (4, 2, 3, 1, 0, 0)
    written = rows(tmp_path / "out.parquet")
    assert [(r["request_id"], r["position"], r["shown"], r["clicked"]) for r in written] == [
        ("r1", 1, True, False),
        ("r1", 2, True, True),
        ("r1", 3, False, False),
        ("r2", 1, True, False),
    ]
    assert written[1] == {
        "request_id": "r1",
        "time": datetime(2026, 3, 1, tzinfo=UTC),
        "session_id": "s1",
        "scenario": "suggestion",
        "query": "wireless earbuds",
        "side_information": None,
        "position": 2,
        "text": "earbuds 1",
        "source": "both",
        "shown": True,
        "clicked": True,
        "user_key": "u1",
        "propensity": 0.5,
        "bundle_id": "bundle-1",
        "auxiliary_text": None,
    }
    assert sorted(os.listdir(tmp_path)) == ["log", "out.parquet"]


def test_sources_are_named_and_an_unknown_session_is_null(tmp_path):
    suggestions = tuple(Shown(text=s.name, sources=s) for s in (Source.LOG, Source.GENERATED))
    of = token(session_id="", suggestions=suggestions)
    to_impressions(logged(tmp_path / "log", [event("1", of=of)]), tmp_path / "out.parquet")

    written = rows(tmp_path / "out.parquet")
    assert [(r["source"], r["session_id"]) for r in written] == [("log", None), ("generated", None)]


def test_an_event_sent_again_counts_once_though_segments_lie_between(tmp_path):
    late = event("late", delay_s=7200)
    paths = logged(tmp_path / "log", [event("1"), late], [event("2")], [event("1"), late])
    counts = to_impressions(paths, tmp_path / "out.parquet")
    assert counts == (3, 1, 1, 1, 1, 0)


def test_events_that_arrive_hours_late_and_out_of_order_join_their_response(tmp_path, monkeypatch):
    # Small limits, so that files are appended to more than once and rows written in many steps.
    monkeypatch.setattr(impressions, "_MAX_BUFFERED_BYTES", 2000)
    monkeypatch.setattr(impressions, "_ROWS_PER_WRITE", 7)
    made = {f"r{i}": token(f"r{i}", time_unix_ms=MADE_MS + i * HOUR_MS // 3) for i in range(30)}
    shown = [event(f"s-{name}", Kind.IMPRESSION, 2, of=of) for name, of in made.items()]
    clicks = [event(f"c-{name}", Kind.CLICK, 2, of=of) for name, of in made.items()]
    random.Random(0).shuffle(shown)
    random.Random(1).shuffle(clicks)
    paths = logged(tmp_path / "log", clicks, shown)

    counts = to_impressions(paths, tmp_path / "out.parquet")

    assert counts == (90, 30, 30, 30, 0, 0)
    written = rows(tmp_path / "out.parquet")
    assert [r["request_id"] for r in written] == [name for name in made for _ in range(3)]
    assert all((r["shown"], r["clicked"]) == (r["position"] == 2,) * 2 for r in written)


@pytest.mark.parametrize(
    ("delay_s", "joins"), [(0, True), (1800, True), (1800.001, False), (-60, True), (-301, False)]
)
def test_a_click_joins_only_within_the_attribution_window(tmp_path, delay_s, joins):
    batch = [event("1", Kind.IMPRESSION, 1), event("2", Kind.CLICK, 1, delay_s=delay_s)]
    counts = to_impressions(logged(tmp_path / "log", batch), tmp_path / "out.parquet")
    assert (counts.num_clicked, counts.num_late_clicks) == (int(joins), int(not joins))


@pytest.mark.parametrize("delay_s", [1801, -301])
@pytest.mark.parametrize("kind", [Kind.IMPRESSION, Kind.DISMISS])
def test_a_suggestion_clicked_out_of_time_alone_was_neither_clicked_nor_passed_over(
    tmp_path, kind, delay_s
):
    batch = [event(f"seen-{p}", kind, p) for p in (1, 2, 3)]
    batch += [event(f"late-{p}", Kind.CLICK, p, delay_s=delay_s) for p in (1, 2)]
    batch.append(event("in time", Kind.CLICK, 2))
    counts = to_impressions(logged(tmp_path / "log", batch), tmp_path / "out.parquet")
    assert (counts.num_shown, counts.num_clicked, counts.num_late_clicks) == (2, 1, 2)
    found = [(r["shown"], r["clicked"]) for r in rows(tmp_path / "out.parquet")]
    assert found == [(False, False), (True, True), (True, False)]


def cut_token() -> AttributionToken:
    """Returns a token whose last texts are cut when it is sealed."""
    texts = [random.Random(i).randbytes(100).hex() for i in range(32)]
    return token("cut", suggestions=tuple(Shown(text=t, sources=Source.GENERATED) for t in texts))


def test_positions_whose_text_was_cut_are_left_out_and_counted(tmp_path):
    batch = [event("1", Kind.CLICK, 1, of=cut_token()), event("2", Kind.CLICK, 32, of=cut_token())]
    counts = to_impressions(logged(tmp_path / "log", batch), tmp_path / "out.parquet")

    assert counts.num_cut_texts > 0
    assert counts.num_rows == 32 - counts.num_cut_texts
    assert (counts.num_shown, counts.num_clicked) == (1, 1), "of rows, not of events"
    written = rows(tmp_path / "out.parquet")
    assert [r["position"] for r in written] == list(range(1, counts.num_rows + 1))
    assert None not in [r["text"] for r in written]


def test_no_segments_give_an_empty_table_with_all_columns(tmp_path):
    assert to_impressions([], tmp_path / "out.parquet").num_rows == 0
    assert pq.read_table(tmp_path / "out.parquet").num_columns == 15


def test_only_its_owner_can_read_the_table(tmp_path):
    to_impressions(logged(tmp_path / "log", [event("1")]), tmp_path / "out.parquet")
    assert stat.S_IMODE((tmp_path / "out.parquet").stat().st_mode) == 0o600


def test_a_window_of_nonsense_is_refused_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="window_s is -1"):
        to_impressions([], tmp_path / "out.parquet", window_s=-1)
    assert os.listdir(tmp_path) == []


def test_a_failure_half_way_leaves_nothing_behind(tmp_path):
    paths = [*logged(tmp_path / "log", [event("1")]), tmp_path / "log/gone.jsonl"]
    with pytest.raises(FileNotFoundError):
        to_impressions(paths, tmp_path / "out.parquet")
    assert os.listdir(tmp_path) == ["log"]


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["impressions", *map(str, arguments)])


def test_the_command_prints_counts_and_leaves_open_segments_alone(tmp_path):
    logged(tmp_path / "log", [event("1"), event("2", delay_s=60)])
    running = FeedbackLog(tmp_path / "log")
    asyncio.run(running.append([event("3", of=token("r2"))]))
    arguments = ("--feedback", tmp_path / "log", "--out", tmp_path / "new/out.parquet")

    result = called(*arguments, "--window-s", 30)
    running.close()

    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f"3 rows of 1 requests written to {tmp_path}/new/out.parquet",
        "1 shown, 1 clicked",
        "1 clicks outside the window left out",
        "0 positions left out whose text the token had no room for",
        "1 segments read, 1 open ones left out",
    ]
    assert pq.read_metadata(tmp_path / "new/out.parquet").num_rows == 3


def test_the_command_refuses_what_it_cannot_do_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.parquet").write_text("precious")
    logged(tmp_path / "log", [event("1")])
    out = tmp_path / "out.parquet"
    for arguments, part in (
        (("--feedback", tmp_path / "absent", "--out", out), "absent is not a directory"),
        (("--feedback", tmp_path / "empty", "--out", out), "empty has no closed segments, 0 open"),
        (("--feedback", tmp_path / "log", "--out", tmp_path / "old.parquet"), "exists; remove it"),
        (("--feedback", tmp_path / "log", "--out", tmp_path / "log"), "log is a directory; name a"),
        (("--feedback", tmp_path / "log", "--out", out, "--window-s", 0), "window_s is 0.0"),
        (("--feedback", tmp_path / "log", "--out", tmp_path / "old.parquet/x"), "File exists"),
    ):
        result = called(*arguments)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("queryrec-engine: ")
        assert result.stderr.count("\n") == 1
        assert part in result.stderr
    assert (tmp_path / "old.parquet").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["empty", "log", "old.parquet"]


def test_training_accepts_the_table_and_mines_it(tmp_path):
    from train.config import read_config
    from train.mining.logs import connect, open_tables
    from train.mining.mine import mine
    from train.settings import MineConfig

    users = ("u1", "u2")
    batch: list[Event] = []
    for number, user in enumerate(users):
        of = token(
            f"r-{user}", query="tea", time_unix_ms=MADE_MS + number * 1000, session_id=f"s-{user}"
        )
        batch += [event(f"{user}-{p}", Kind.IMPRESSION, p, of=of, user_key=user) for p in (1, 2)]
        click = event(f"{user}-click", Kind.CLICK, 2, of=of, delay_s=9, user_key=user)
        batch += [click, click]
    batch.append(event("cut", Kind.CLICK, 32, of=replace(cut_token(), session_id="")))
    counts = to_impressions(logged(tmp_path / "log", batch), tmp_path / "out.parquet")
    assert (counts.num_requests, counts.num_clicked) == (3, 2)

    start = datetime(2026, 2, 28)
    searches = [
        {"session_id": f"s-{user}", "time": start + timedelta(minutes=i), "query": query} | key
        for user in users
        for key in ({"user_key": user},)
        for i, query in enumerate(("tea", "earbuds 0"))
    ]
    pq.write_table(pa.Table.from_pylist(searches), tmp_path / "searches.parquet")
    places = {
        "searches": str(tmp_path / "searches.parquet"),
        "impressions": str(tmp_path / "out.parquet"),
    }
    connection = connect(MineConfig(memory_limit_mb=256, num_threads=1), tmp_path / "spill")
    tables = open_tables(connection, **places)
    assert tables.counts_users
    assert tables.impressions is not None
    read = tables.impressions.order_by("time", "position").to_pyarrow().to_pylist()
    assert read[0]["time"] == datetime(2026, 3, 1), "UTC, whatever the zone of this machine"
    connection.disconnect()

    config = read_config(None, size="tiny")
    settings = {"min_users": 2, "min_pairs": 1, "valid_share": 0.0, "num_threads": 1}
    config = msgspec.structs.replace(config, mine=msgspec.structs.replace(config.mine, **settings))
    summary = mine(config, **places, out=tmp_path / "mined", report=lambda _: None)

    assert (summary.counted, summary.num_impressions, summary.num_clicks) == ("users", 4, 2)
    mined = [
        (r["request_id"], r["position"], r["text"], r["clicked"], r["side_information"])
        for r in rows(tmp_path / "mined/impressions.parquet")
    ]
    assert mined == [
        (f"r-{user}", position, f"earbuds {position - 1}", position == 2, [])
        for user in users
        for position in (1, 2)
    ]
