import math
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from engine.formats.manifest import PromptSpec, ScenarioSpec
from tests.train.mining.conftest import START, Write, configured, mined, rows, search, shown
from train.mining.mine import mine


def test_queries_are_normalised_counted_and_sorted_by_bytes(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [
        search(user, minute, query)
        for user in ("u1", "u2")
        for minute, query in enumerate(["  Tea ", "\uff54ea", "zebra", "Äpfel", "tea pot", "東京"])
    ]
    out, summary = mined(write_log_tables, tmp_path, searches, [])
    found = rows(out, "queries")
    texts = [r["text"] for r in found]
    assert texts == sorted(["tea", "zebra", "äpfel", "tea pot", "東京"], key=str.encode)
    counts = {"num_searches": 4, "num_searches_before_cut": 4, "num_users": 2}
    assert found[0] == {"text": "tea", **counts}
    assert summary.num_impressions == 0
    assert summary.position_ctr_from == "default"
    scenarios = msgspec.json.decode((out / "scenarios.json").read_bytes(), type=list[ScenarioSpec])
    assert scenarios[0].position_ctr[0] == 1
    assert msgspec.json.decode((out / "prompt.json").read_bytes(), type=PromptSpec).max_tokens == 64


def test_a_text_needs_k_distinct_users_not_searches(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search("u1", i, "my secret", session=f"s{i}") for i in range(9)]
    searches += [search("u1", 20, "tea"), search("u2", 20, "tea")]
    out, summary = mined(write_log_tables, tmp_path, searches, [])
    assert [r["text"] for r in rows(out, "queries")] == ["tea"]
    assert summary.dropped == {"search_below_k": 9}
    assert summary.counted == "users"


@pytest.mark.parametrize("user_key", [None, ""])
def test_without_user_keys_sessions_count_and_the_summary_says_so(
    write_log_tables: Write, tmp_path: Path, user_key: str | None
) -> None:
    searches = [{**search("", i, "tea", session=f"s{i}"), "user_key": user_key} for i in range(2)]
    out, summary = mined(write_log_tables, tmp_path, searches, [])
    assert (summary.counted, summary.counted_in_impressions) == ("sessions", None)
    assert rows(out, "queries")[0]["num_users"] == 2


def test_impressions_without_user_keys_leave_searches_counted_by_user(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search("u1", i, "my secret", session=f"s{i}") for i in range(9)]
    searches += [search(u, 20, "tea") for u in ("u1", "u2")]
    impressions = [shown(f"s{i}", "tea for two", user_key=None) for i in range(2)]
    out, summary = mined(write_log_tables, tmp_path, searches, impressions)
    assert [r["text"] for r in rows(out, "queries")] == ["tea"]
    assert {r["text"] for r in rows(out, "impressions")} == {"tea for two"}
    assert (summary.counted, summary.counted_in_impressions) == ("users", "sessions")


def test_searches_without_user_keys_leave_impressions_counted_by_user(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [{**search(f"s{i}", i, "tea"), "user_key": None} for i in range(2)]
    impressions = [
        shown("u1", "my secret", session_id=f"s{i}", request_id=f"r{i}") for i in range(3)
    ]
    out, summary = mined(write_log_tables, tmp_path, searches, impressions)
    assert [r["text"] for r in rows(out, "queries")] == ["tea"]
    assert rows(out, "impressions") == []
    assert (summary.counted, summary.counted_in_impressions) == ("sessions", "users")


def test_empty_ids_are_missing_ones(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search(u, 0, "tea") for u in ("u1", "u2")]
    searches += [{**search("u1", i, "tea"), "session_id": ""} for i in range(3)]
    searches += [search("u1", 9, "coffee"), search("", 9, "coffee", session="s3")]
    impressions = [shown("u1", "tea"), shown("u2", "tea", request_id="")]
    out, summary = mined(write_log_tables, tmp_path, searches, impressions)
    assert [(r["text"], r["num_users"]) for r in rows(out, "queries")] == [("tea", 2)]
    assert [r["request_id"] for r in rows(out, "impressions")] == ["r-u1"]
    assert summary.dropped == {
        "impression_missing_value": 1,
        "search_below_k": 2,
        "search_missing_value": 3,
    }


def test_personal_data_and_unsafe_words_never_leave(
    write_log_tables: Write, tmp_path: Path
) -> None:
    (tmp_path / "unsafe.txt").write_text("# comment\nnasty*\nbad thing\n")
    texts = ["write to a.b@c.de", "call +1 (212) 555-0143", "order 123456789", "Nastyness",
             "a bad thing", "x" * 300, "tea\x00pot", "tea"]  # fmt: skip
    searches = [search(u, i, t) for u in ("u1", "u2") for i, t in enumerate(texts)]
    out, summary = mined(
        write_log_tables, tmp_path, searches, [], unsafe_words=str(tmp_path / "unsafe.txt")
    )
    assert [r["text"] for r in rows(out, "queries")] == ["tea"]
    assert summary.dropped == {
        "search_control_characters": 2,
        "search_email": 2,
        "search_long_number": 4,
        "search_too_long": 2,
        "search_unsafe_words": 4,
    }


def test_pairs_are_ordered_distinct_and_within_reach(
    write_log_tables: Write, tmp_path: Path
) -> None:
    steps = ["a", "a", "b", "c", "a"]  # the repeated "a" is the next page, not a step
    searches = [search(u, i, q) for u in ("u1", "u2") for i, q in enumerate(steps)]
    out, _ = mined(write_log_tables, tmp_path, searches, [], max_pair_steps=2)
    pairs = {(r["source"], r["target"]): r for r in rows(out, "pairs")}
    assert set(pairs) == {("a", "b"), ("a", "c"), ("b", "c"), ("b", "a"), ("c", "a")}
    assert pairs["a", "b"]["num_pairs"] == 2
    # 10 pairs in all: a-b, a-c, b-c, b-a, c-a twice each; p(a->b) = .2, p(a->) = p(->b).. by hand
    expected = math.log(0.2 / (0.4 * 0.2)) / -math.log(0.2)
    assert pairs["a", "b"]["association"] == pytest.approx(expected)


def test_llr_is_dunnings_ratio_of_the_pair_table(write_log_tables: Write, tmp_path: Path) -> None:
    steps = ["a", "a", "b", "c", "a"]
    searches = [search(u, i, q) for u in ("u1", "u2") for i, q in enumerate(steps)]
    out, summary = mined(
        write_log_tables, tmp_path, searches, [], max_pair_steps=2, association="llr"
    )
    assert summary.association == "llr"
    pairs = {(r["source"], r["target"]): r["association"] for r in rows(out, "pairs")}
    # 10 pairs: 4 begin with a, 2 end with b, and 2 are a-b.
    cells = [(2, 4, 2), (2, 4, 8), (0, 6, 2), (6, 6, 8)]
    g2 = 2 * sum(k * math.log(k * 10 / (row * column)) for k, row, column in cells if k)
    assert pairs["a", "b"] == pytest.approx(g2 / (1 + g2))
    assert all(-1 < value < 1 for value in pairs.values())


def test_sessions_of_robots_count_for_nothing(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search(u, i, q) for u in ("u1", "u2") for i, q in enumerate("ab")]
    robots = [search(f"r{n}", i / 10, f"{'xy'[i % 2]}") for n in range(3) for i in range(6)]
    out, summary = mined(write_log_tables, tmp_path, searches + robots, [], max_session_searches=5)
    assert [r["text"] for r in rows(out, "queries")] == ["a", "b"]
    assert summary.dropped == {"search_of_robot": 18}
    assert [r["session_id"] for r in rows(out, "robots")] == ["r0", "r1", "r2"]
    out, summary = mined(write_log_tables, tmp_path, searches + robots, [], max_session_searches=0)
    assert not (out / "robots.parquet").exists()
    assert [r["text"] for r in rows(out, "queries")] == ["a", "b", "x", "y"]


def test_rows_without_session_time_or_position_are_left_out_and_counted(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search(u, 0, "tea") for u in ("u1", "u2")]
    searches += [{**searches[0], "session_id": None}, {**searches[0], "time": None}]
    impressions = [shown("u1", "tea"), shown("u2", "tea", position=None, request_id="r9")]
    impressions += [shown("u2", "tea", clicked=None, request_id="r8")]
    out, summary = mined(write_log_tables, tmp_path, searches, impressions)
    assert summary.dropped == {"search_missing_value": 2, "impression_missing_value": 1}
    assert {r["request_id"]: r["clicked"] for r in rows(out, "impressions")} == {
        "r-u1": True,
        "r8": False,
    }
    with pytest.raises(ValueError, match="4 search_missing_value"):
        mined(write_log_tables, tmp_path, [{**s, "time": None} for s in searches], [])


@pytest.mark.parametrize(
    ("near_duplicates", "expected"),
    [
        ("keep", {"t shirts": 3, "t-shirt": 2, "t-shirts": 2}),
        ("punctuation", {"t shirts": 5, "t-shirt": 2}),
        ("words", {"t shirts": 8}),
    ],
)
def test_near_duplicates_become_the_most_searched_public_form(
    write_log_tables: Write, tmp_path: Path, near_duplicates: str, expected: dict[str, int]
) -> None:
    texts = ["t shirts"] * 3 + ["t-shirts"] * 2 + ["t-shirt"] * 2 + ["shirt t"]
    searches = [search(f"u{i}", i, text) for i, text in enumerate(texts)]
    impressions = [shown(f"u{i}", "T-Shirt", query="t-shirts") for i in range(2)]
    out, _ = mined(
        write_log_tables, tmp_path, searches, impressions, near_duplicates=near_duplicates
    )
    assert {r["text"]: r["num_searches"] for r in rows(out, "queries")} == expected
    listed = {(r["query"], r["text"]) for r in rows(out, "impressions")}
    assert {text for pair in listed for text in pair} <= set(expected)


def test_a_pair_needs_k_users_of_its_own(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search("u1", 0, "a"), search("u1", 1, "b"), search("u2", 0, "a")]
    searches += [search("u3", 0, "b")]
    out, _ = mined(write_log_tables, tmp_path, searches, [])
    assert len(rows(out, "queries")) == 2
    assert rows(out, "pairs") == []
    assert rows(out, "contexts") == []


def test_a_long_pause_ends_a_session(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search(u, m, q) for u in ("u1", "u2") for m, q in ((0, "a"), (31, "b"), (32, "c"))]
    out, summary = mined(write_log_tables, tmp_path, searches, [])
    assert [(r["source"], r["target"]) for r in rows(out, "pairs")] == [("b", "c")]
    assert summary.num_sessions == 4


def test_contexts_hold_the_session_oldest_first(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search(u, i, q) for u in ("u1", "u2") for i, q in enumerate("abcd")]
    searches += [search("u1", 1.5, "only me")]
    out, _ = mined(write_log_tables, tmp_path, searches, [])
    found = {(r["query"], r["target"]): r for r in rows(out, "contexts")}
    assert found["c", "d"]["session_queries"] == ["a", "b"]
    assert sum(r["weight"] for r in rows(out, "contexts") if r["query"] == "c") == 2
    # u1's private query stands between b and c, so b is followed by c for u2 only.
    assert found["b", "c"]["weight"] == 1


def test_the_last_share_of_time_is_for_validation(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [
        search(f"u{n}", day * 1440 + i, q, session=f"s{day}-{n}")
        for day in range(10)
        for n in range(2)
        for i, q in enumerate("ab" if day < 9 else "ba")
    ]
    out, _ = mined(write_log_tables, tmp_path, searches, [], valid_share=0.1)
    assert {(r["query"], r["split"]) for r in rows(out, "contexts")} == {
        ("a", "train"),
        ("b", "valid"),
    }
    assert [(r["source"], r["target"]) for r in rows(out, "pairs")] == [("a", "b")]


def test_logs_may_be_of_years_that_32_bits_do_not_hold(
    write_log_tables: Write, tmp_path: Path
) -> None:
    searches = [search(u, 30 * 525_600 + i, "tea") for i, u in enumerate("abcde")]
    _, summary = mined(write_log_tables, tmp_path, searches, [], valid_share=0.2)
    assert summary.cut is not None
    assert summary.cut > 2**31


@pytest.mark.parametrize("near_duplicates", ["keep", "words"])
def test_searches_before_the_validation_cut_are_counted_apart(
    write_log_tables: Write, tmp_path: Path, near_duplicates: str
) -> None:
    days = [["tea", "soup"]] * 8 + [["tea", "cake"]] * 2
    searches = [
        search(user, day * 1440 + i, query, session=f"s{day}-{user}")
        for day, queries in enumerate(days)
        for user in ("u1", "u2")
        for i, query in enumerate(queries)
    ]
    out, _ = mined(
        write_log_tables,
        tmp_path,
        searches,
        [],
        valid_share=0.2,
        near_duplicates=near_duplicates,
    )
    counts = {
        r["text"]: (r["num_searches"], r["num_searches_before_cut"]) for r in rows(out, "queries")
    }
    assert counts == {"cake": (4, 0), "soup": (16, 16), "tea": (20, 16)}


def test_texts_below_k_leave_nothing(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search(f"u{i}", 0, "tea") for i in range(2)]
    impressions = [
        row
        for i in range(40)
        for row in (
            shown(f"u{i}", "tea", request_id=f"r{i}", clicked=i < 20),
            shown(f"u{i}", f"rare {i}", request_id=f"s{i}", clicked=i < 5),
        )
    ]
    out, _ = mined(write_log_tables, tmp_path, searches, impressions)
    assert {r["text"] for r in rows(out, "impressions")} == {"tea"}
    assert "rare" not in (out / "summary.json").read_text()


def test_what_is_odd_of_the_tables_is_warned_of(write_log_tables: Write, tmp_path: Path) -> None:
    minute = (datetime(1970, 1, 10) - START) / timedelta(minutes=1)
    tables = write_log_tables([search(u, minute, "tea") for u in "ab"], [])
    told: list[str] = []
    searches, out = str(tables.searches), tmp_path / "run/mined"
    mine(configured(), searches=searches, impressions="", out=out, report=told.append)
    assert "warning: table searches: column time has nothing but January 1970" in "\n".join(told)


@pytest.mark.parametrize("is_of_one_user", [True, False])
def test_sessions_of_several_users_are_warned_of(
    write_log_tables: Write, tmp_path: Path, is_of_one_user: bool
) -> None:
    searches = [
        search(user, minute, text, session=f"{user} 1" if is_of_one_user else "1")
        for user in ("u1", "u2")
        for minute, text in enumerate(["tea", "tea pot"])
    ]
    place = str(write_log_tables(searches, []).searches)
    told: list[str] = []
    out = tmp_path / "run/mined"
    mine(configured(), searches=place, impressions="", out=out, report=told.append)
    warning = "warning: 1 of 1 sessions of several searches have several users"
    assert any(line.startswith(warning) for line in told) == (not is_of_one_user)


@pytest.mark.parametrize(
    ("num_without", "is_warned"), [(0, False), (1, False), (6, True), (20, False)]
)
def test_rows_without_the_user_that_others_have_are_warned_of(
    write_log_tables: Write, tmp_path: Path, num_without: int, is_warned: bool
) -> None:
    searches = [search(f"u{i}", i, "tea") for i in range(20)]
    for row in searches[:num_without]:
        row["user_key"] = None
    place = str(write_log_tables(searches, []).searches)
    told: list[str] = []
    out = tmp_path / "run/mined"
    mine(configured(), searches=place, impressions="", out=out, report=told.append)
    warning = f"warning: table searches: {num_without} of 20 rows have no user_key"
    assert any(line.startswith(warning) for line in told) == is_warned


def test_names_of_directories_are_no_columns(write_log_tables: Write, tmp_path: Path) -> None:
    searches = [search(u, i, t) for u in "ab" for i, t in enumerate(("tea", "green tea"))]
    searches.append(search("a", 5, "only a searched this"))
    tables = write_log_tables(searches, [shown(u, "green tea") for u in "ab"])
    places, outs = [], []
    for name in ("logs", "query=x/clicked=false", "num_users=99/num_searches=99/text=x"):
        directory = tmp_path / "places" / name
        directory.mkdir(parents=True)
        places.append({k: str(shutil.copy(p, directory)) for k, p in tables._asdict().items()})
        outs.append(directory / "run/mined")
    for place, out in zip(places, outs, strict=True):
        mine(configured(), **place, out=out, report=lambda _: None)
    for out in outs[1:]:
        for path in outs[0].iterdir():
            assert (out / path.name).read_bytes() == path.read_bytes(), (out, path.name)
    assert [r["text"] for r in rows(outs[2], "queries")] == ["green tea", "tea"]
    assert [r["num_users"] for r in rows(outs[2], "queries")] == [2, 2]


@pytest.mark.parametrize("is_lone", [True, False])
def test_a_log_of_lone_searches_is_warned_of(
    write_log_tables: Write, tmp_path: Path, is_lone: bool
) -> None:
    searches = [
        search(u, minute, text, session=f"{u} {minute}" if is_lone else None)
        for u in ("u1", "u2")
        for minute, text in enumerate(["tea", "tea pot"])
    ]
    said: list[str] = []
    place = str(write_log_tables(searches, []).searches)
    out = tmp_path / "run/mined"
    mine(configured(), searches=place, impressions="", out=out, report=said.append)
    assert any(line.startswith("warning: no anonymous query follows") for line in said) == is_lone
