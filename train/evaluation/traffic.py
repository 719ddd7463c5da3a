"""What users searched before and after the validation cut, from the log tables of a run.

Mining keeps contexts between k-anonymous queries only; an evaluation also wants how often queries
were searched, and the queries below k, which are cold. So the log is read again, with the same
rules as in `train.mining.mine`: texts, sessions, robots, repeated queries and the cut; but
near-duplicates are not merged. Holds one row a search in memory. Knows nothing of models.
"""

import math
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from train.config import TrainConfig, read_config
from train.evaluation.baselines import SearchLog
from train.mining import logs, mine
from train.mining.anonymity import TextFilter, read_unsafe_words
from train.pipeline import SIMULATED
from train.settings import MineConfig

CONFIG = "config.toml"


class Step(NamedTuple):
    """A query and the next, different one of the session."""

    query: str
    target: str


class Traffic(NamedTuple):
    """Searches of normalised texts; those that mining refuses are not in it.

    `before` and `after` count searches, `followers` steps before the cut; `steps` are those after
    it, one item a time it was taken, in bytewise order.
    """

    before: Counter[str]
    after: Counter[str]
    followers: dict[str, Counter[str]]
    steps: list[Step]


class Mined(NamedTuple):
    """What a run knows of its log: k-anonymous queries and how often they were searched.

    The counts are those of the whole log, as in the index of a bundle.
    """

    counts: Counter[str]
    is_simulated: bool

    def log(self, traffic: Traffic | None = None) -> SearchLog:
        """Returns the same for baselines, with steps between its queries before the cut."""
        followers: dict[str, Counter[str]] = {}
        for query, targets in (traffic.followers if traffic else {}).items():
            known = Counter({t: n for t, n in targets.items() if t in self.counts})
            if query in self.counts and known:
                followers[query] = known
        return SearchLog(self.counts, followers)


def read_mined(run: Path) -> Mined:
    """Reads what was mined in a run directory.

    Raises:
        ValueError: nothing was mined there.
    """
    path = run / "mined" / mine.QUERIES
    if not path.is_file():
        raise ValueError(f"{run}: there is no {path.relative_to(run)}; is it a run directory?")
    table = pq.read_table(path, columns=["text", "num_searches"])
    counts = zip(table["text"].to_pylist(), table["num_searches"].to_pylist(), strict=True)
    return Mined(Counter(dict(counts)), not _config(run).logs.searches)


def read_traffic(run: Path) -> Traffic:
    """Reads the searches that a run directory was made from.

    Raises:
        ValueError: nothing was mined there, or the log is not where it was.
    """
    config, cut = _config(run), mine.read_summary(run).cut
    searches = config.logs.searches or str(run / SIMULATED / "searches.parquet")
    with tempfile.TemporaryDirectory() as spill:
        connection = logs.connect(config.mine, Path(spill))
        opened = logs.open_tables(connection, searches=searches, impressions="").searches
        rows = opened.select("session_id", "query", "time").to_pyarrow()
        connection.disconnect()
    return _traffic(rows.drop_null(), config.mine, cut)


def _traffic(rows: pa.Table, settings: MineConfig, cut: int | None) -> Traffic:
    # M searches
    keep = TextFilter(read_unsafe_words(settings.unsafe_words))
    raw = rows["query"].combine_chunks().dictionary_encode()
    cleaned = [keep(text).text for text in raw.dictionary.to_pylist()]
    texts = sorted({text for text in cleaned if text is not None})
    place_of = {text: i for i, text in enumerate(texts)}
    code_of_raw = np.array([-1 if t is None else place_of[t] for t in cleaned], np.int64)
    code_M = code_of_raw[raw.indices.to_numpy()]
    session = rows["session_id"].combine_chunks().dictionary_encode()
    usable = np.flatnonzero(code_M >= 0)
    code_M, session_M = code_M[usable], session.indices.to_numpy()[usable]
    time_us_M = rows["time"].cast(pa.int64()).to_numpy()[usable]
    order = np.lexsort((code_M, time_us_M, session_M))
    code_M, session_M, time_us_M = code_M[order], session_M[order], time_us_M[order]
    is_pause = np.diff(time_us_M // 1_000_000) > settings.session_gap_s
    starts_M = np.concatenate([[True], (np.diff(session_M) != 0) | is_pause])[: len(code_M)]
    if settings.max_session_searches:
        part_M = np.cumsum(starts_M) - 1
        is_human_M = (np.bincount(part_M) <= settings.max_session_searches)[part_M]
        code_M, time_us_M, starts_M = (
            code_M[is_human_M],
            time_us_M[is_human_M],
            starts_M[is_human_M],
        )
    if not len(code_M):
        raise ValueError("no search of the log can be used: see mined/summary.json")
    second_M = time_us_M // 1_000_000
    if cut is None:  # that of the searches alone, which held-out impressions may have put earlier
        num_before = math.ceil((1 - settings.valid_share) * len(second_M))
        cut = int(np.sort(second_M)[max(0, num_before - 1)]) + 1
    is_after_M = second_M >= cut
    is_repeat_M = ~starts_M & np.concatenate([[False], np.diff(code_M) == 0])
    part_M = np.cumsum(starts_M)[~is_repeat_M]
    once_M, is_late_M = code_M[~is_repeat_M], is_after_M[~is_repeat_M]
    places = np.flatnonzero(np.diff(part_M) == 0)
    followers: dict[str, Counter[str]] = defaultdict(Counter)
    steps: list[Step] = []
    for source, target, is_late in zip(
        once_M[places].tolist(),
        once_M[places + 1].tolist(),
        is_late_M[places].tolist(),
        strict=True,
    ):
        step = Step(texts[source], texts[target])
        if is_late:
            steps.append(step)
        else:
            followers[step.query][step.target] += 1

    def counted(chosen_M: np.ndarray) -> Counter[str]:
        found, numbers = np.unique(code_M[chosen_M], return_counts=True)
        return Counter({texts[i]: n for i, n in zip(found.tolist(), numbers.tolist(), strict=True)})

    return Traffic(counted(~is_after_M), counted(is_after_M), dict(followers), sorted(steps))


def _config(run: Path) -> TrainConfig:
    path = run / CONFIG
    if not path.is_file():
        raise ValueError(f"{run}: there is no {CONFIG}; is it a run directory?")
    return read_config(path, size=None)
