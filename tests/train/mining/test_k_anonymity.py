"""No artefact of mining holds a text that fewer than k people stand behind.

The oracle counts people row by row, as docs/training.md says the rules, and shares nothing with
mining but what a normalised text is and which texts are refused.
"""

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers import BertModel

from engine.formats.index import CooccurrenceIndex
from engine.formats.text import normalise, normalise_prefix
from engine.formats.vocabulary import FIRST_TEXT_ID, Vocabulary
from train.config import TrainConfig, read_config
from train.mining.anonymity import TextFilter
from train.mining.mine import mine
from train.models.backbone import bert_config, shapes_of
from train.pipeline import stages_of
from train.retrieval.index import build_index
from train.settings import IndexConfig

K, GAP_S, MAX_STEPS, MAX_SEARCHES = 3, 1800, 2, 8
START = datetime(2024, 1, 1)
Write = Callable[[list[dict], list[dict]], Any]
People = dict[Any, set[str]]
TEXTS = ["tea", "Tea pot", "pot, tea", "tea pots", "teas ", "te", "  ", "bob@x.org", "e 12345678",
         "\uff54ea", "東京", "東京 tea", "zebra", "ask ann"]  # fmt: skip
OTHERS = ["why tea?", "so it is", "which tea?", "nobody knows"]  # answers and lead-ins
USERS = ["u1", "u2", "u3", "u4", "u5", None, ""]
SESSIONS = ["s1", "s2", "s3", "s4", "s5", None, ""]
REQUESTS = ["r1", "r2", "r3", "r4", "r5", "r6"]
# What is written by mining itself, not by people.
STRUCTURE = {"request_id", "split", "scenario", "kind"}


def configured(**changes: Any) -> TrainConfig:
    config = read_config(None, size="tiny")
    fixed = {"min_users": K, "min_pairs": 1, "session_gap_s": GAP_S, "num_threads": 1}
    limits = {"max_pair_steps": MAX_STEPS, "max_session_searches": MAX_SEARCHES}
    changed = msgspec.structs.replace(config.mine, **{**fixed, **limits, **changes})
    return msgspec.structs.replace(config, mine=changed)


@st.composite
def searches(draw: st.DrawFn) -> list[dict]:
    user = st.sampled_from(USERS)
    row = st.tuples(user, st.sampled_from(SESSIONS), st.integers(0, 99), st.sampled_from(TEXTS))
    rows = draw(st.lists(row, min_size=30, max_size=90))
    knows_users = draw(st.booleans())
    return [
        {
            "session_id": session,
            "time": START + timedelta(minutes=2 * minute),
            "query": text,
            "user_key": user if knows_users else None,
        }
        for user, session, minute, text in rows
    ]


@st.composite
def impressions(draw: st.DrawFn) -> list[dict]:
    text, other = st.sampled_from(TEXTS), st.sampled_from(OTHERS)
    item = st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["session", "answer", "cooccurring", "spell", None]),
            "text": st.one_of(text, other, st.none()),
        }
    )
    row = st.fixed_dictionaries(
        {
            "request_id": st.sampled_from(REQUESTS),
            "time": st.just(START),
            "session_id": st.sampled_from(SESSIONS),
            "side_information": st.one_of(st.none(), st.lists(item, max_size=2)),
            "position": st.integers(1, 9),
            "text": st.one_of(text, other),
            "source": st.sampled_from(["log", "generated", "made by ann", None]),
            "bundle_id": st.sampled_from(["b1", "b1", None]),
            "shown": st.booleans(),
            "clicked": st.one_of(st.booleans(), st.just(True)),
            "user_key": st.sampled_from(USERS),
            "propensity": st.just(1.0),
            "auxiliary_text": st.one_of(st.none(), other),
        }
    )
    scenario = st.sampled_from(["suggestion", "completion", "clarification", "other"])
    panel = st.fixed_dictionaries({"scenario": scenario, "query": text})
    panels = draw(st.fixed_dictionaries(dict.fromkeys(REQUESTS, panel)))
    unique = draw(st.lists(row, max_size=40, unique_by=lambda r: (r["request_id"], r["position"])))
    rows: list[dict[str, Any]] = unique
    unknown = {} if draw(st.booleans()) else {"user_key": None}
    return [{**row, **panels[row["request_id"]], **unknown} for row in rows]


def person(row: dict, counts_users: bool) -> str | None:
    return (row["user_key"] if counts_users else row["session_id"]) or None


def clean(text: str | None) -> str | None:
    return None if text is None or TextFilter()(text).text is None else normalise(text)


def human_sessions(rows: list[dict]) -> Iterator[list[dict]]:
    """Parts of a session_id without a pause, those of robots left out."""
    for session in sorted({r["session_id"] for r in rows} - {None, ""}):
        mine = [r for r in rows if r["session_id"] == session and clean(r["query"])]
        mine.sort(key=lambda r: (r["time"], clean(r["query"]), r["user_key"] or "~"))
        part: list[dict] = []
        for row in mine:
            if part and (row["time"] - part[-1]["time"]).total_seconds() > GAP_S:
                if len(part) <= MAX_SEARCHES:
                    yield part
                part = []
            part.append(row)
        if part and len(part) <= MAX_SEARCHES:
            yield part


class Oracle:
    """Who stands behind what."""

    def __init__(self, searched: list[dict], listed: list[dict]) -> None:
        counts_users = any(r["user_key"] for r in searched)
        counts_viewers = any(r["user_key"] for r in listed)
        searchers: People = defaultdict(set)
        followers: People = defaultdict(set)
        for rows in human_sessions(searched):
            steps: list[dict] = []
            for row in rows:
                who = person(row, counts_users)
                if who is not None:
                    searchers[clean(row["query"])].add(who)
                if not steps or clean(steps[-1]["query"]) != clean(row["query"]):
                    steps.append(row)
            for i, row in enumerate(steps):
                for later in steps[i + 1 : i + 1 + MAX_STEPS]:
                    pair = (clean(row["query"]), clean(later["query"]))
                    who = person(row, counts_users)
                    if pair[0] != pair[1] and who is not None:
                        followers[pair].add(who)
        clickers: People = defaultdict(set)
        readers: People = defaultdict(set)
        for row in listed:
            who = person(row, counts_viewers)
            if not row["shown"] or row["scenario"] == "other" or who is None:
                continue
            if row["clicked"]:
                clickers[clean(row["text"])].add(who)
            readers["auxiliary", clean(row["auxiliary_text"])].add(who)
            readers["source", row["source"]].add(who)
            for item in row["side_information"] or []:
                readers[item["kind"], clean(item["text"])].add(who)
        self.queries = self._enough(searchers)
        self.pairs = {pair for pair in self._enough(followers) if self.queries.issuperset(pair)}
        self.suggestions = self.queries | self._enough(clickers)
        self.read = self._enough(readers)
        # What a generator wrote from public text is a function of public text.
        self.written = {
            (row["scenario"], clean(row["text"]))
            for row in listed
            if row["shown"]
            and (row["source"], row["bundle_id"]) == ("generated", "b1")
            and self._is_public(row, listed)
        }

    def _enough(self, people: People) -> set:
        return {what for what, who in people.items() if len(who) >= K and what is not None}

    def _is_public(self, row: dict, listed: list[dict]) -> bool:
        """Whether all that a generator may have read for a row's request is public."""
        query = clean(row["query"])
        is_typed = row["scenario"] == "completion"
        starts = normalise_prefix(row["query"])
        if not (
            any(q.startswith(starts) for q in self.queries) if is_typed else query in self.queries
        ):
            return False
        same = [r for r in listed if r["request_id"] == row["request_id"] and counted(r)]
        if any(r["side_information"] is None for r in same):
            return False
        items = [item for r in same for item in r["side_information"]]
        return all(
            clean(item["text"]) in self.queries
            if item["kind"] in ("session", "cooccurring")
            else item["kind"] and (item["kind"], clean(item["text"])) in self.read
            for item in items
            if item["text"] is not None
        )

    def allows(self, text: str) -> bool:
        """Whether a text may be anywhere at all."""
        whole = text in self.suggestions or any(text == t for _, t in {*self.read, *self.written})
        return whole or any(q.startswith(text) for q in self.queries)


def counted(row: dict) -> bool:
    """Whether mining reads a row of impressions at all."""
    return row["shown"] and row["scenario"] != "other"


def strings(value: Any, name: str = "") -> Iterator[str]:
    """Every string in a nested value, but for the columns that mining writes itself."""
    if isinstance(value, str):
        if name not in STRUCTURE:
            yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from strings(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part, name)


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def mined(write: Write, tmp_path: Path, searched: list, listed: list, **changes: Any) -> Path:
    tables = write(searched, listed)
    out = tmp_path / "run/mined"
    shutil.rmtree(out, ignore_errors=True)
    mine(
        configured(**changes),
        searches=str(tables.searches),
        impressions=str(tables.impressions) if listed else "",
        out=out,
        report=lambda _: None,
    )
    return out


PROPERTY = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking mines hundreds of times
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SETTINGS = st.fixed_dictionaries(
    {
        "near_duplicates": st.sampled_from(["keep", "keep", "punctuation", "words"]),
        "association": st.sampled_from(["npmi", "llr"]),
        "valid_share": st.sampled_from([0.0, 0.3]),
    }
)


@PROPERTY
@given(searches(), impressions(), SETTINGS)
def test_no_artefact_holds_what_fewer_than_k_people_stand_behind(
    write_log_tables: Write, tmp_path: Path, searched: list, listed: list, changes: dict
) -> None:
    if not any(r["shown"] and r["clicked"] for r in listed):
        listed = []
    oracle = Oracle(searched, listed)
    if not oracle.queries:
        with pytest.raises(ValueError, match="no query was searched by at least 3 distinct"):
            mined(write_log_tables, tmp_path, searched, listed, **changes)
        return
    out = mined(write_log_tables, tmp_path, searched, listed, **changes)
    is_merged = changes["near_duplicates"] != "keep"
    queries = {r["text"] for r in rows_of(out / "queries.parquet")}
    pairs = {(r["source"], r["target"]) for r in rows_of(out / "pairs.parquet")}
    assert queries <= oracle.queries
    if not is_merged:
        assert queries == oracle.queries
        assert pairs <= oracle.pairs
        if not changes["valid_share"]:
            assert pairs == oracle.pairs
    for source, target in pairs:
        assert {source, target} <= queries
    for row in rows_of(out / "contexts.parquet"):
        assert {row["query"], row["target"], *row["session_queries"]} <= queries
        if row["split"] == "train" and not is_merged:
            assert (row["query"], row["target"]) in oracle.pairs
    for row in rows_of(out / "impressions.parquet") if listed else []:
        is_written = (row["scenario"], row["text"]) in oracle.written
        assert row["text"] in oracle.suggestions or is_written
        if row["scenario"] == "completion":
            assert any(q.startswith(row["query"]) for q in queries)
        else:
            assert row["query"] in queries
        read = [(item["kind"], item["text"]) for item in row["side_information"]]
        read += [("auxiliary", row["auxiliary_text"]), ("source", row["source"])]
        for kind, text in read:
            if kind in ("session", "cooccurring"):
                assert text in queries
            elif text is not None:
                assert (kind, text) in oracle.read
    files = sorted(out.iterdir())
    assert len(files) == (8 if listed else 7)
    for path in files:
        if path.suffix == ".parquet":
            rows = rows_of(path)
            if path.stem == "robots":
                rows = [{**row, "session_id": None} for row in rows]  # ids may stay, as requests'
            assert {t for t in strings(rows) if not oracle.allows(t)} == set()
        else:
            held = set(strings(json.loads(path.read_text())))
            assert held.isdisjoint({normalise(t) for t in TEXTS + OTHERS} - {""})


def secretive_log(secret: str, rows: Iterable[tuple[int, bool]]) -> tuple[list[dict], list[dict]]:
    """A log where every user also searches, types, is shown and reads texts only they know."""
    searched: list[dict] = []
    listed: list[dict] = []
    for number, (place, is_secret) in enumerate(rows):
        user = USERS[number % 4]
        own = f"{secret} {user} {place}"
        common = ["tea", "tea pot", "green tea", "zebra"][place % 4]
        time = START + timedelta(minutes=number)
        text = own if is_secret else common
        key = {"user_key": user, "session_id": user, "time": time}
        searched.append({**key, "query": text})
        for position, suggestion in enumerate((common, own), start=1):
            listed.append(
                {
                    **key,
                    "request_id": f"r{number}",
                    "scenario": ["suggestion", "completion"][number % 2],
                    "query": text,
                    "side_information": [
                        {"kind": kind, "text": t}
                        for t in (own, common)
                        for kind in ("session", "answer")
                    ],
                    "position": position,
                    "text": suggestion,
                    "source": own,
                    "bundle_id": "b1",
                    "shown": True,
                    "clicked": True,
                    "propensity": 1.0,
                    "auxiliary_text": own,
                }
            )
    return searched, listed


@settings(PROPERTY, max_examples=5)
@given(st.lists(st.tuples(st.integers(0, 7), st.booleans()), min_size=40, max_size=60), SETTINGS)
def test_artefacts_do_not_depend_on_what_private_texts_say(
    write_log_tables: Write, tmp_path: Path, rows: list, changes: dict
) -> None:
    found = []
    for secret in ("my diagnosis", "zz salary"):
        logs = secretive_log(secret, rows)
        out = mined(write_log_tables, tmp_path, *logs, max_session_searches=0, **changes)
        found.append(
            {
                path.name: rows_of(path) if path.suffix == ".parquet" else path.read_text()
                for path in out.iterdir()
            }
        )
    assert found[0] == found[1]


def test_tokenizer_and_index_know_public_queries_only(
    write_log_tables: Write, tmp_path: Path
) -> None:
    rng = random.Random(0)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randrange(2, 5))) for _ in range(150)]
    public = sorted({" ".join(rng.choices(words, k=2)) for _ in range(400)})
    searched = [
        {"session_id": user, "user_key": user, "time": START, "query": text}
        for user in ("u1", "u2", "u3")
        for text in (*public, f"diagnosis of {user}", f"diagnosis {user} xylophone")
    ]
    mined(write_log_tables, tmp_path, searched, [], max_session_searches=0)
    run = tmp_path / "run"
    stages = {s.name: s for s in stages_of(configured(), run, print)}
    stages["tokenizer"].make(run / "tokenizer.json")
    vocabulary = Vocabulary.load(run / "tokenizer.json")
    known = " \n".join(f" {text}" for text in public).encode()
    tokens = [vocabulary.bytes_of([i]) for i in range(FIRST_TEXT_ID, vocabulary.size)]
    assert max(map(len, tokens)) >= 6
    assert [t for t in tokens if len(t) > 1 and t not in known] == []

    torch.manual_seed(0)
    size = vocabulary.size
    encoder = BertModel(bert_config(shapes_of("tiny").encoder, size, 16), add_pooling_layer=False)
    encoder.save_pretrained(run / "encoder")
    spec = build_index(run, IndexConfig(), seed=0, output=run / "index")
    index = CooccurrenceIndex(run / "index", spec)
    assert {index.text(row) for row in range(len(index))} == set(public)
    for path in (run / "index").iterdir():
        assert b"diagnosis" not in path.read_bytes()
