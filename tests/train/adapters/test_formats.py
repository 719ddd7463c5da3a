import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.adapters import ADAPTERS
from train.adapters.adapter import Impression, LeftOut, Search
from train.adapters.mimics_click import _allocated

FIXTURES = Path(__file__).parent / "fixtures"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read(name: str, path: Path) -> tuple[list[Search], list[Impression], LeftOut]:
    left_out = LeftOut()
    rows = list(ADAPTERS[name].rows(path, left_out))
    searches = [r for r in rows if isinstance(r, Search)]
    return searches, [r for r in rows if isinstance(r, Impression)], left_out


def at(time: str) -> int:
    return (datetime.fromisoformat(time).replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


def test_tsv_reads_a_header_in_any_order_and_absent_users(tmp_path: Path) -> None:
    searches, _, left_out = read("tsv", FIXTURES / "own.tsv")
    assert searches == [
        Search("a", at("2026-03-01 08:30"), "Blue Kettle", "u1"),
        Search("a", at("2026-03-01 08:31"), "kettle stand", "u1"),
        Search("b", at("2026-03-01 08:40"), "blue kettle", None),
        Search("b", at("2026-03-01 08:40:00.5"), "tea towel", "u2"),
    ]
    assert not left_out.counts
    path = tmp_path / "my.tsv"
    path.write_text("\ufeffQUERY\tuser_key\ttime\tSession_ID\r\ntea\tu\t1772354400\ts\r\n")
    assert read("tsv", path)[0] == [Search("s", at("2026-03-01 08:40"), "tea", "u")]
    path.write_text("s\t1772354400\ttea\n")
    assert read("tsv", path)[0] == [Search("s", at("2026-03-01 08:40"), "tea", None)]


def test_texts_of_parquet_that_are_not_utf8_are_told_with_the_file(tmp_path: Path) -> None:
    names = ["query_id", "session_id", "prefixes", "first_prefix_typed_time", "final_search_term"]
    columns = {name: ["1"] for name in [*names, "search_time", "popularity"]}
    broken = pa.array([b"my secret \xff"], pa.binary()).view(pa.string())
    path = tmp_path / "aq.parquet"
    pq.write_table(pa.table({**columns, "final_search_term": broken}), path)
    with pytest.raises(ValueError, match=r"aq\.parquet: cannot be read as parquet") as raised:
        read("amazonqac", path)
    assert "secret" not in str(raised.value)


def test_aol_clicks_and_pages_are_one_search() -> None:
    searches, impressions, left_out = read("aol", FIXTURES / "aol.tsv")
    assert [(s.user_key, s.query, s.time_us) for s in searches] == [
        ("101", "blue kettle", at("2006-03-01 10:00")),
        ("101", "blue kettle", at("2006-03-02 09:00")),
        ("101", "green kettle", at("2006-03-02 09:01")),
        ("101", "blue kettle", at("2006-03-02 09:02")),
        ("102", "blue kettle", at("2006-03-02 09:02:10")),
        ("103", "tea towel", at("2006-03-05 12:00")),
    ]
    assert all(s.session_id == s.user_key for s in searches)
    assert not impressions
    assert left_out.counts == {
        "further click or page of the search before": 3,
        "query is blanked": 1,
        "time cannot be read": 1,
        "not 3 to 5 columns": 1,
    }
    assert left_out.first["query is blanked"] == "aol.tsv:10"


@pytest.mark.parametrize("unit", ["string", "ms", "ns"])
def test_amazonqac_parquet_and_json_lines_give_the_same_searches(tmp_path: Path, unit: str) -> None:
    path = FIXTURES / "amazonqac.jsonl"
    searches, impressions, left_out = read("amazonqac", path)
    assert not impressions
    assert [s.query for s in searches] == ["garden lamp solar", "garden chair", "wool socks"]
    assert [s.session_id for s in searches] == ["s1", "s1", "s2"]
    assert searches[0].time_us == at("2023-09-04 20:46:27")
    assert left_out.first == {
        "without session_id or final_search_term": "amazonqac.jsonl:3",
        "time cannot be read": "amazonqac.jsonl:4",
        "not JSON with the columns of the first line": "amazonqac.jsonl:5",
    }
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records = [r for r in records if "prefixes" in r and r["search_time"] != "yesterday"]
    if unit != "string":
        for record in records:
            record["search_time"] = datetime.fromisoformat(record["search_time"])
    table = pa.Table.from_pylist(records)
    if unit != "string":
        place = table.column_names.index("search_time")
        times = table["search_time"].cast(pa.timestamp(unit))
        table = table.set_column(place, "search_time", times)
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=1)
    assert read("amazonqac", tmp_path / "train.parquet")[0] == searches

    pq.write_table(table.drop_columns(["popularity", "prefixes"]), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="misses prefixes, popularity"):
        read("amazonqac", tmp_path / "test.parquet")
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"cut\.parquet: cannot be read as parquet"):
        read("amazonqac", tmp_path / "cut.parquet")


def test_mimics_panes_are_reconstructed_as_the_module_says() -> None:
    searches, impressions, left_out = read("mimics-click", FIXTURES / "mimics-click.tsv")
    shown: Counter[str] = Counter(s.query for s in searches)
    assert shown == {"paper lantern": 20, "zq": 5, "bicycle bell": 10}
    clicks = Counter((i.query, i.text) for i in impressions if i.clicked)
    assert clicks == {
        ("paper lantern", "paper lantern diy"): 7,
        ("paper lantern", "paper lantern large"): 3,
        ("bicycle bell", "buy"): 1,
        ("bicycle bell", "repair"): 1,
    }
    panes: dict[str, list[Impression]] = {}
    for row in impressions:
        panes.setdefault(row.request_id, []).append(row)
    assert len(panes) == 35
    for rows in panes.values():
        assert [r.position for r in rows] == list(range(1, len(rows) + 1))
        assert sum(r.clicked for r in rows) <= 1
        assert {r.scenario for r in rows} == {"clarification"}
    questions = {i.query: i.auxiliary_text for i in impressions}
    assert questions["zq"] == 'Which "zq" do you mean?'
    assert len({s.session_id for s in searches}) == 3, "a pane is one session, however often shown"
    assert len({(s.query, s.time_us) for s in searches}) == 3
    assert sum(left_out.counts.values()) == 4
    assert read("mimics-click", FIXTURES / "mimics-click.tsv")[:2] == (searches, impressions)


def test_mimics_rounding_is_right_on_average(tmp_path: Path) -> None:
    header = (FIXTURES / "mimics-click.tsv").read_text().splitlines()[0]
    pane = "query {}\tWhich?\ta\tb\t\t\t\tlow\t1\t0.8\t0.2\t0\t0\t0\n"  # 0.25 clicks expected
    path = tmp_path / "panes.tsv"
    path.write_text(header + "\n" + "".join(pane.format(i) for i in range(2000)))
    clicks = sum(i.clicked for i in read("mimics-click", path)[1])
    assert 420 < clicks < 580  # four standard deviations around 500


@given(
    st.integers(0, 30),
    st.lists(st.floats(0, 1), min_size=5, max_size=5).filter(lambda shares: sum(shares) > 1e-6),
)
def test_clicks_are_allocated_within_one_of_their_share(
    num_clicks: int, shares: list[float]
) -> None:
    counts = Counter(_allocated(num_clicks, shares))
    assert sum(counts.values()) == num_clicks
    for option, share in enumerate(shares):
        assert abs(counts[option] - num_clicks * share / sum(shares)) < 1 + 1e-9


def test_ogeek_keeps_completions_and_counts_the_rest() -> None:
    searches, impressions, left_out = read("ogeek", FIXTURES / "ogeek.txt")
    assert [(i.query, i.text, i.clicked) for i in impressions] == [
        ("春天", "春天花园", True),
        ("春天", "春天的歌", False),
        ("Lamp s", "lamp shade ideas", False),
        ("lamp", "LAMP", True),
    ]
    assert [s.query for s in searches] == [i.text for i in impressions], "clicked or not"
    assert {(i.scenario, i.position) for i in impressions} == {("completion", 1)}
    assert len({i.request_id for i in impressions}) == 4
    assert impressions[0].time_us == impressions[1].time_us, "the split is by prefix"
    assert left_out.first == {
        "title does not start with what was typed: no completion": "ogeek.txt:3",
        "not 5 columns": "ogeek.txt:6",
        "label is not 0 or 1": "ogeek.txt:7",
    }


def test_ogeek_test_files_without_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text('lamp\t{"lamp": "0.9"}\tlamp\tarticle\n')
    with pytest.raises(ValueError, match="no label"):
        read("ogeek", path)
