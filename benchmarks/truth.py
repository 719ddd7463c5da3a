"""Scores produced lists by the truth of a simulated world, against baselines of equal length.

    python -m benchmarks.truth --world DIR --heldout FILE LISTS.jsonl ...

DIR is what `queryrec-train simulate` wrote. A line of LISTS.jsonl is
`{"scenario", "query", "system", "texts", "sources"}`, optionally `session_queries` and
`auxiliary_text`. Every query (for completion: the prefix) must come from the held-out list that
the world was made with. Prints a row a system and scenario: mean true click probability, list value
and ratios to most-popular and nearest-neighbour lists of equal N, with 95 % bootstrap intervals
over queries. The last line is the same as JSON. All clicks are simulated.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from bisect import bisect_left
from pathlib import Path

from train import simulator
from train.evaluation.baselines import MostPopular, NearestNeighbour, SearchLog
from train.evaluation.intervals import Interval
from train.evaluation.lists import ProducedList, TruthRow, true_ctr
from train.simulator.corpus import read_heldout
from train.simulator.tables import SEARCHES_NAME


def read_lists(path: Path) -> list[ProducedList]:
    """Reads a JSONL file of produced lists.

    Raises:
        ValueError: with the line number, if a line is not such a list.
    """
    lists: list[ProducedList] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            lists.append(
                ProducedList(
                    scenario=fields["scenario"],
                    query=fields["query"],
                    system=fields["system"],
                    texts=tuple(fields["texts"]),
                    sources=tuple(fields.get("sources", ())),
                    session_queries=tuple(fields.get("session_queries", ())),
                    auxiliary_text=fields.get("auxiliary_text") or "",
                )
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a produced list: {error}") from error
    return lists


def check_heldout(lists: list[ProducedList], heldout: list[str]) -> None:
    """Raises ValueError unless each query is held out, or for completion begins a held-out one."""
    known = sorted(heldout)
    for produced in lists:
        at = bisect_left(known, produced.query)
        found = known[at] if at < len(known) else ""
        is_heldout = found == produced.query
        if produced.scenario == "completion":
            is_heldout = found.startswith(produced.query)
        if not is_heldout:
            raise ValueError(
                f"a {produced.scenario} list of {produced.system!r} answers {produced.query!r}, "
                f"which is not in the held-out file: seen queries do not measure generalisation"
            )


def score(world_dir: Path, heldout_path: Path, lists: list[ProducedList]) -> list[TruthRow]:
    """Returns the rows of `true_ctr` with both baselines, built from the world's own log."""
    record = simulator.read_record(world_dir)
    digest = hashlib.sha256(heldout_path.read_bytes()).hexdigest()
    if digest != record.heldout_sha256:
        raise ValueError(
            f"{heldout_path} is not the held-out file of the world in {world_dir} "
            f"(sha256 {digest[:16]}..., expected {record.heldout_sha256[:16]}...)"
        )
    check_heldout(lists, read_heldout(heldout_path))
    log = SearchLog.read(world_dir / SEARCHES_NAME)
    baselines = {"most_popular": MostPopular(log), "nearest_neighbour": NearestNeighbour(log)}
    return true_ctr(simulator.load(world_dir), lists, baselines=baselines)


def main() -> None:
    """Reads the arguments, scores, prints the rows and the JSON line."""
    parser = argparse.ArgumentParser(description="Scores lists by a simulated world's truth.")
    parser.add_argument("lists", type=Path, nargs="+", help="JSONL files of produced lists")
    parser.add_argument("--world", type=Path, required=True, help="directory of the simulation")
    parser.add_argument("--heldout", type=Path, required=True, help="held-out queries of the world")
    arguments = parser.parse_args()
    try:
        lists = [produced for path in arguments.lists for produced in read_lists(path)]
        rows = score(arguments.world, arguments.heldout, lists)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{'scenario':14}{'system':20}{'queries':>8}{'N':>4}  {'P(click) x 1000':22}list value")
    for row in rows:
        print(
            f"{row.scenario:14}{row.system:20}{row.num_queries:>8}{row.num_items:>4}  "
            f"{_shown(row.click_probability, 1000):22}{_shown(row.list_value)}"
        )
        for name, ratio in row.ratios.items():
            print(f"{'':14}  x {name}: {_shown(ratio)}")
    fingerprint = simulator.read_record(arguments.world).fingerprint
    stated = {"is_simulated": True, "fingerprint": fingerprint,
              "rows": [_as_json(row) for row in rows]}  # fmt: skip
    print(json.dumps(stated))


def _shown(interval: Interval, factor: float = 1.0) -> str:
    mean, low, high = (factor * bound for bound in interval)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _as_json(row: TruthRow) -> dict[str, object]:
    fields = dataclasses.asdict(row)
    for name in ("click_probability", "list_value"):
        fields[name] = getattr(row, name)._asdict()
    fields["ratios"] = {name: ratio._asdict() for name, ratio in row.ratios.items()}
    return fields


if __name__ == "__main__":
    main()
