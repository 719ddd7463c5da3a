"""Runs a whole simulation and writes its directory; it holds no formula of its own."""

from __future__ import annotations

import datetime
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from train.simulator import impressions, sessions, tables, world
from train.simulator.clicks import ClickModel
from train.simulator.impressions import Panel
from train.simulator.policy import LoggingPolicy
from train.simulator.sessions import Searches

BUNDLE_ID = "simulated-logging-policy"
_START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SHARES = {"suggestion": 0.45, "completion": 0.35, "clarification": 0.20}  # of panels
_FILES = (
    tables.SEARCHES_NAME,
    tables.IMPRESSIONS_NAME,
    world.JSON_NAME,
    world.ARRAYS_NAME,
    world.TEXT_NAME,
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSummary:
    """What a simulation wrote.

    Attributes:
        num_searches: rows of `searches`.
        num_users: distinct users with a search.
        num_queries: distinct queries searched.
        num_requests: panels, by scenario.
        num_impressions: rows of `impressions`.
        click_rate: clicks per shown item, by scenario.
        panel_click_rate: share of panels with a click, by scenario.
        fingerprint: of the truth, as in `world.json`.
    """

    num_searches: int
    num_users: int
    num_queries: int
    num_requests: dict[str, int]
    num_impressions: int
    click_rate: dict[str, float]
    panel_click_rate: dict[str, float]
    fingerprint: str


def simulate(
    out_dir: Path,
    *,
    queries_path: Path,
    heldout_path: Path,
    num_searches: int = 200_000,
    num_users: int = 20_000,
    num_requests: int = 60_000,
    num_logged_queries: int = 24_000,
    num_days: int = 30,
    exploration_rate: float = 0.08,
    click_model: ClickModel = "pbm",
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SimulationSummary:
    """Simulates a search service on real queries and writes its log and its truth.

    Writes `searches.parquet`, `impressions.parquet`, `world.json`, `world.npz` and
    `world_text.txt.gz`. The same arguments give the same rows.

    Args:
        out_dir: created if absent.
        queries_path: TSV with `query` and `slice`, plain or gzip.
        heldout_path: queries that must not occur anywhere in the log, one a line.
        num_searches: rows of the searches table; the last session may exceed it.
        num_users: users who may search.
        num_requests: panels shown, over all scenarios (45 % suggestion, 35 % completion, 20 %
            clarification).
        num_logged_queries: distinct real queries that users know; the others define the truth.
        num_days: length of the log.
        exploration_rate: share of panels with randomised adjacent swaps, in [0, 1].
        click_model: `pbm`, or `cascade` for a second world.
        seed: of the world and its log; another seed has other tastes and another popularity.
        overwrite: allows files of an earlier simulation to be replaced.
        progress: called with (stage, number of finished stages, number of stages).

    Raises:
        ValueError: if an argument is out of range, a file is unusable, or `out_dir` is not empty.
    """
    _check(
        num_searches=num_searches,
        num_users=num_users,
        num_requests=num_requests,
        num_logged_queries=num_logged_queries,
        num_days=num_days,
    )
    if not 0 <= exploration_rate <= 1:
        raise ValueError(f"exploration_rate is {exploration_rate}: it must lie in [0, 1]")
    if click_model not in ("pbm", "cascade"):
        raise ValueError(f"unknown click_model {click_model!r}: expected pbm or cascade")
    out_dir = Path(out_dir)
    _check_directory(out_dir, overwrite)
    stages = itertools.count()

    def report(stage: str) -> None:
        if progress is not None:
            progress(stage, next(stages), 8)

    report("reading real queries and drawing the truth")
    made = world.make(
        Path(queries_path),
        Path(heldout_path),
        num_logged_queries=num_logged_queries,
        seed=seed,
        click_model=click_model,
    )
    queries = made.corpus.logged
    report("learning where users go")
    behaviour = sessions.learn(made.truth, made.corpus, seed=seed)
    report("walking sessions")
    searches = sessions.walk(
        behaviour, num_searches=num_searches, num_users=num_users, num_days=num_days, seed=seed
    )
    logging_policy = LoggingPolicy(
        queries,
        np.bincount(searches.query, minlength=len(queries)),
        _followers(searches),
        behaviour.sharing,
        behaviour.topic,
        frozenset(made.corpus.barred),
    )
    shown: list[Panel] = []
    for scenario, share in SHARES.items():
        report(f"showing {scenario} panels")
        shown += impressions.panels(
            made.truth,
            logging_policy,
            queries,
            searches,
            scenario,
            num_requests=round(num_requests * share),
            exploration_rate=exploration_rate,
            seed=seed,
        )
    report("writing tables")
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_searches(out_dir / tables.SEARCHES_NAME, queries, searches)
    _write_impressions(out_dir / tables.IMPRESSIONS_NAME, searches, shown)
    record = world.save(made, out_dir, heldout_path=Path(heldout_path))
    report("done")
    return _summary(searches, shown, record.fingerprint)


def _check(**numbers: int) -> None:
    wrong = [f"{name} is {value}" for name, value in numbers.items() if value < 1]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: expected at least 1")


def _check_directory(out_dir: Path, overwrite: bool) -> None:
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir} is not a directory")
    present = sorted(path.name for path in out_dir.iterdir()) if out_dir.is_dir() else []
    if not present:
        return
    if not overwrite:
        raise ValueError(f"{out_dir} is not empty: give another directory, or allow overwriting")
    foreign = [name for name in present if name not in _FILES]
    if foreign:
        raise ValueError(
            f"{out_dir} holds {', '.join(foreign[:3])}, which no simulation wrote: overwriting "
            f"replaces earlier simulations only"
        )


def _followers(searches: Searches) -> dict[int, Counter[int]]:
    followers: dict[int, Counter[int]] = defaultdict(Counter)
    query = searches.query.tolist()
    for row, step in enumerate(searches.step.tolist()):
        if step and query[row] != query[row - 1]:
            followers[query[row - 1]][query[row]] += 1
    return dict(followers)


def _write_searches(path: Path, queries: list[str], searches: Searches) -> None:
    order = np.argsort(searches.time_s, kind="stable")
    columns: dict[str, list | pa.Array] = {
        "session_id": [f"s{visit:08x}" for visit in searches.visit[order].tolist()],
        "time": _times(searches.time_s[order]),
        "query": [queries[i] for i in searches.query[order].tolist()],
        "user_key": [f"u{user:06x}" for user in searches.user[order].tolist()],
    }
    tables.write(columns, tables.SEARCHES, path)


def _write_impressions(path: Path, searches: Searches, shown: list[Panel]) -> None:
    # A completion panel is seen while typing, the others after the answer came.
    time_s = [
        searches.time_s[p.search] + (-1.5 if p.scenario == "completion" else 1.0) for p in shown
    ]
    order = np.argsort(time_s, kind="stable").tolist()
    rows = [
        (number, index, place)
        for number, index in enumerate(order)
        for place in range(len(shown[index].items))
    ]
    panels = [shown[index] for _, index, _ in rows]
    items = [shown[index].items[place] for _, index, place in rows]
    columns: dict[str, list | pa.Array] = {
        "request_id": [f"r{number:08x}" for number, _, _ in rows],
        "time": _times(np.array([time_s[index] for _, index, _ in rows])),
        "session_id": [f"s{searches.visit[p.search]:08x}" for p in panels],
        "scenario": [p.scenario for p in panels],
        "query": [p.query for p in panels],
        "side_information": [
            [{"kind": "session", "text": query} for query in p.session_queries] for p in panels
        ],
        "position": [place + 1 for _, _, place in rows],
        "text": [item.text for item in items],
        "source": [item.source for item in items],
        "shown": [place < shown[index].num_shown for _, index, place in rows],
        "clicked": [shown[index].clicked[place] for _, index, place in rows],
        "user_key": [f"u{searches.user[p.search]:06x}" for p in panels],
        "propensity": [shown[index].propensities[place] for _, index, place in rows],
        "bundle_id": [BUNDLE_ID] * len(rows),
        "auxiliary_text": [p.question for p in panels],
    }
    tables.write(columns, tables.IMPRESSIONS, path)


def _times(seconds: np.ndarray) -> pa.Array:
    start_us = int(_START.timestamp()) * 1_000_000
    micros = start_us + np.round(seconds * 1e6).astype(np.int64)
    return pa.array(micros, type=pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def _summary(searches: Searches, shown: list[Panel], fingerprint: str) -> SimulationSummary:
    by_scenario: dict[str, list[Panel]] = {scenario: [] for scenario in SHARES}
    for panel in shown:
        by_scenario[panel.scenario].append(panel)
    return SimulationSummary(
        num_searches=len(searches.query),
        num_users=len(np.unique(searches.user)),
        num_queries=len(np.unique(searches.query)),
        num_requests={name: len(some) for name, some in by_scenario.items()},
        num_impressions=sum(len(panel.items) for panel in shown),
        click_rate={
            name: sum(map(sum, (p.clicked for p in some))) / max(sum(p.num_shown for p in some), 1)
            for name, some in by_scenario.items()
        },
        panel_click_rate={
            name: sum(any(p.clicked) for p in some) / max(len(some), 1)
            for name, some in by_scenario.items()
        },
        fingerprint=fingerprint,
    )
