"""Hand-made data: a mined run of topics whose queries share no word, and small log tables."""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.formats.manifest import PromptSpec
from train.clicks.training import train_click_model
from train.generation.generator import train_generator
from train.mining.mine import MineSummary
from train.models.backbone import shapes_of
from train.models.tokenizer import train_tokenizer
from train.settings import ClickModelConfig, GeneratorConfig, default_scenarios

NUM_TOPICS = 40
QUERIES_PER_TOPIC = 6
POSITIONS = 5
ATTRACTION = (0.8, 0.4, 0.2, 0.1)  # by the second word of a text
IMPRESSION_SCHEMA = pa.schema(
    {
        "request_id": pa.string(),
        "time": pa.timestamp("s"),
        "scenario": pa.string(),
        "query": pa.string(),
        "side_information": pa.list_(pa.struct({"kind": pa.string(), "text": pa.string()})),
        "position": pa.int64(),
        "text": pa.string(),
        "source": pa.string(),
        "clicked": pa.bool_(),
        "propensity": pa.float64(),
        "auxiliary_text": pa.string(),
        "split": pa.string(),
    }
)
EXAMINATION = np.array([1.0, 0.7, 0.5, 0.35, 0.25])


def word(number: int) -> str:
    """Returns a made-up word, different for each number."""
    consonants, vowels = "bcdfghjklmnprstvz", "aeiou"
    letters = ""
    for _ in range(3):
        number, c = divmod(number, len(consonants))
        number, v = divmod(number, len(vowels))
        letters += consonants[c] + vowels[v]
    return letters


def topic_queries() -> list[list[str]]:
    """Returns the queries of each topic: two words each, the second one from a common pool."""
    queries = []
    for topic in range(NUM_TOPICS):
        first = [word(1 + 7 * (topic * QUERIES_PER_TOPIC + i)) for i in range(QUERIES_PER_TOPIC)]
        queries.append([f"{w} {word(90000 + (i % 4))}" for i, w in enumerate(first)])
    return queries


def write_mined(run: Path) -> None:
    """Writes the mined tables and tokenizer.json of the hand-made world."""
    mined = run / "mined"
    mined.mkdir(parents=True)
    topics = topic_queries()
    texts = sorted((q for qs in topics for q in qs), key=lambda t: t.encode())
    searches = {t: 5 + 3 * (i % 11) for i, t in enumerate(texts)}
    pq.write_table(
        pa.table(
            {
                "text": texts,
                "num_searches": [searches[t] for t in texts],
                "num_searches_before_cut": [searches[t] - 2 - i % 3 for i, t in enumerate(texts)],
                "num_users": [5] * len(texts),
            }
        ),
        mined / "queries.parquet",
    )
    # Neighbours on a ring are mined pairs; the queries two steps apart are held out.
    pairs, contexts = [], []
    for queries in topics:
        for i, source in enumerate(queries):
            for step in (1, 3, 5):
                target = queries[(i + step) % QUERIES_PER_TOPIC]
                pairs.append((source, target, 0.2 + 0.1 * step))
            target = queries[(i + 2) % QUERIES_PER_TOPIC]
            contexts.append((source, target, "valid"))
    columns = list(zip(*pairs, strict=True))
    pq.write_table(
        pa.table(
            {
                "source": columns[0],
                "target": columns[1],
                "num_pairs": [9] * len(pairs),
                "num_users": [5] * len(pairs),
                "association": columns[2],
            }
        ),
        mined / "pairs.parquet",
    )
    columns = list(zip(*contexts, strict=True))
    pq.write_table(
        pa.table(
            {
                "query": columns[0],
                "target": columns[1],
                "session_queries": [[] for _ in contexts],
                "weight": [1.0] * len(contexts),
                "split": columns[2],
            }
        ),
        mined / "contexts.parquet",
    )
    scenarios = [s.spec([1.0, 0.5]) for s in default_scenarios()]
    (mined / "scenarios.json").write_bytes(msgspec.json.encode(scenarios))
    prompt = PromptSpec(side_information_kinds=["session", "answer", "cooccurring"])
    (mined / "prompt.json").write_bytes(msgspec.json.encode(prompt))
    summary = MineSummary(
        min_users=5,
        counted="users",
        num_searches=sum(searches.values()),
        num_sessions=100,
        num_queries=len(texts),
        num_pairs=len(pairs),
        num_contexts=len(contexts),
        num_impressions=0,
        num_clicks=0,
        position_ctr_from="default",
        dropped={},
    )
    (mined / "summary.json").write_bytes(msgspec.json.encode(summary))
    vocabulary = train_tokenizer(
        texts,
        [searches[t] for t in texts],
        size=1024,
        scenarios=[s.name for s in scenarios],
        kinds=prompt.side_information_kinds,
    )
    vocabulary.save(run / "tokenizer.json")


def write_impressions(
    run: Path, *, num_requests: int, swap_rate: float, seed: int = 0, scenario: str = "suggestion"
) -> None:
    """Adds impressions whose truth is known: the second word of a text decides its attraction.

    The policy sorts by attraction and noise, so that position and relevance go together; a share
    of the requests has two random neighbours swapped, as the propensity says.
    """
    random = np.random.default_rng(seed)
    queries = [q for qs in topic_queries() for q in qs]
    attraction = {word(90000 + i): a for i, a in enumerate(ATTRACTION)}
    columns: dict[str, list[object]] = {name: [] for name in IMPRESSION_SCHEMA.names}
    for request in range(num_requests):
        query, *shown = random.choice(queries, POSITIONS + 1, replace=False).tolist()
        truth = {t: attraction[t.split()[1]] for t in shown}
        shown.sort(key=lambda t: -truth[t] + 0.3 * random.standard_normal())
        propensity = np.full(POSITIONS, 1 - swap_rate)
        if random.random() < swap_rate:
            at = int(random.integers(POSITIONS - 1))
            shown[at], shown[at + 1] = shown[at + 1], shown[at]
            propensity[at : at + 2] = swap_rate / (POSITIONS - 1)
        for place, text in enumerate(shown):
            row = {
                "request_id": f"r{request:06}",
                "time": request,
                "scenario": scenario,
                "query": query,
                "side_information": [{"kind": "session", "text": queries[request % len(queries)]}],
                "position": place + 1,
                "text": text,
                "source": "log",
                "clicked": bool(random.random() < truth[text] * EXAMINATION[place]),
                "propensity": float(propensity[place]),
                "auxiliary_text": None,
                "split": "valid" if request >= 0.8 * num_requests else "train",
            }
            for name, value in row.items():
                columns[name].append(value)
    table = pa.table(columns, schema=IMPRESSION_SCHEMA)
    pq.write_table(table, run / "mined/impressions.parquet")


@pytest.fixture(scope="session")
def clicked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory after mining, with impressions; tests must not change it."""
    run = tmp_path_factory.mktemp("clicked")
    write_mined(run)
    write_impressions(run, num_requests=3000, swap_rate=0.2)
    return run


@pytest.fixture(scope="session")
def trained_run(clicked_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with generator (slots) and click model; tests must not change it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(clicked_run, run)
    generator = GeneratorConfig(mode="slots", num_epochs=3, batch_size=32, learning_rate=5e-3)
    train_generator(
        run, generator, shape=shapes_of("tiny").generator, seed=0, output=_made(run / "generator")
    )
    click_model = ClickModelConfig(
        num_epochs=3, batch_size=32, learning_rate=5e-3, session_share=1.0
    )
    reports = train_click_model(
        run,
        click_model,
        shape=shapes_of("tiny").click_model,
        max_edges=32,
        seed=0,
        output=_made(run / "click_model"),
    )
    assert reports is not None
    assert reports["all"].model.auc > 0.65, "the tests need a click model that has learnt something"
    return run


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.fixture(scope="session")
def mined_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory after mining; tests must not change it."""
    run = tmp_path_factory.mktemp("run")
    write_mined(run)
    return run


START = datetime(2024, 3, 1)
TOPICS = {
    "laptop": ["gaming laptop", "laptop bag", "laptop stand", "cheap laptop", "laptop charger"],
    "running shoes": ["running shoes men", "running socks", "trail running shoes", "marathon plan"],
    "coffee": ["coffee grinder", "coffee beans", "espresso machine", "milk frother"],
    "wireless earbuds": [
        "wireless earbuds case",
        "earbuds for running",
        "noise cancelling earbuds",
    ],
    "camping tent": ["camping tent 4 person", "sleeping bag", "camping stove", "tent pegs"],
}
SIDE_TYPE = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))


class LogTables(NamedTuple):
    """Where the two tables are."""

    searches: Path
    impressions: Path


def write_logs(directory: Path, searches: list[dict], impressions: list[dict]) -> LogTables:
    directory.mkdir(parents=True, exist_ok=True)
    paths = LogTables(directory / "searches.parquet", directory / "impressions.parquet")
    pq.write_table(_search_table(searches), paths.searches)
    pq.write_table(_impression_table(impressions), paths.impressions)
    return paths


def _search_table(rows: list[dict]) -> pa.Table:
    schema = pa.schema(
        {
            "session_id": pa.string(),
            "time": pa.timestamp("us"),
            "query": pa.string(),
            "user_key": pa.string(),
        }
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _impression_table(rows: list[dict]) -> pa.Table:
    schema = pa.schema(
        {
            "request_id": pa.string(),
            "time": pa.timestamp("us"),
            "session_id": pa.string(),
            "scenario": pa.string(),
            "query": pa.string(),
            "side_information": SIDE_TYPE,
            "position": pa.int32(),
            "text": pa.string(),
            "source": pa.string(),
            "shown": pa.bool_(),
            "clicked": pa.bool_(),
            "user_key": pa.string(),
            "propensity": pa.float64(),
            "bundle_id": pa.string(),
            "auxiliary_text": pa.string(),
        }
    )
    return pa.Table.from_pylist(rows, schema=schema)


def simulate_logs(directory: Path, *, num_sessions: int = 600, seed: int = 0) -> LogTables:
    """Writes the logs of 40 users who go from a topic's head query to its others."""
    rng = random.Random(seed)
    searches: list[dict] = []
    impressions: list[dict] = []
    for number in range(num_sessions):
        session, user = f"s{number}", f"u{rng.randrange(40)}"
        time = START + timedelta(minutes=30 * number)
        head = rng.choice(sorted(TOPICS))
        earlier: list[str] = []
        for query in [head, *rng.sample(TOPICS[head], 2)]:
            time += timedelta(seconds=rng.randrange(5, 200))
            searches.append({"session_id": session, "time": time, "query": query, "user_key": user})
            for scenario in ("suggestion", "completion", "clarification"):
                typed = query if scenario != "completion" else query[: rng.randrange(1, len(query))]
                options = rng.sample(TOPICS[head], 3)
                for position, text in enumerate(options, start=1):
                    impressions.append(
                        {
                            "request_id": f"{session}-{len(earlier)}-{scenario}",
                            "time": time,
                            "session_id": session,
                            "scenario": scenario,
                            "query": typed,
                            "side_information": [{"kind": "session", "text": t} for t in earlier],
                            "position": position,
                            "text": text,
                            "source": "log",
                            "shown": True,
                            "clicked": rng.random() < 0.5 / position,
                            "user_key": user,
                            "propensity": 1.0,
                            "auxiliary_text": (
                                f"which {head} do you mean?"
                                if scenario == "clarification"
                                else None
                            ),
                        }
                    )
            earlier.append(query)
    return write_logs(directory, searches, impressions)


@pytest.fixture(scope="session")
def simulated_logs(tmp_path_factory: pytest.TempPathFactory) -> LogTables:
    """Simulated log tables; tests must not change them."""
    return simulate_logs(tmp_path_factory.mktemp("logs"))


@pytest.fixture
def write_log_tables(tmp_path: Path) -> Callable[[list[dict], list[dict]], LogTables]:
    """Writes rows of searches and impressions as log tables."""
    return lambda searches, impressions: write_logs(tmp_path / "logs", searches, impressions)


class SimulatedRun(NamedTuple):
    """A run on simulated logs, aligned, and its bundle; hardly trained."""

    run: Path
    bundle: Path


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a module in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], check=False, capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def simulated_run(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRun:
    """All stages by their commands, in about a minute."""
    directory = tmp_path_factory.mktemp("simulated_run")
    run, bundle, config = directory / "run", directory / "bundle", directory / "config.toml"
    config.write_text(
        'size = "tiny"\n'
        "[simulate]\nnum_queries = 2000\nnum_searches = 20000\nnum_users = 1000\n"
        "num_requests = 20000\n"
        '[generator]\nmode = "slots"\nnum_epochs = 0.05\n[click_model]\nnum_epochs = 0.5\n'
        "[alignment]\nnum_rounds = 1\nnum_prompts = 60\nnum_valid_prompts = 30\nmax_kl = 1e6\n"
    )
    made = command("train", "run", "--config", str(config), "--run", str(run))
    assert made.returncode == 0, made.stderr
    made = command(
        *("export", "bundle", "--run", str(run), "--out", str(bundle), "--parity-requests", "3")
    )
    assert made.returncode == 0, made.stderr
    return SimulatedRun(run, bundle)
