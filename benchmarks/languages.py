"""A search log of several languages, to bring to training and to evaluate by script.

    python -m benchmarks.languages --out DIR

Writes DIR/searches.tsv (session, time, query: what `queryrec-train import tsv` reads) and
DIR/heldout.txt.gz, real queries that the log does not hold, about an eighth of each script, for
`queryrec-train evaluate --heldout`. Queries are those of examples/data: all Japanese ones, all with
accents (mostly Spanish), and --num-ascii others. Everything else is simulated with a fixed seed:
how often a query is searched (5 sessions and more, by a Zipf distribution) and what follows it in
every second session (a query nearby in bytewise order). There are no clicks.

The last line of stdout is JSON: by script, queries in the log and held out, and searches.
"""

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.load.arguments import read_lines
from engine.formats.text import normalise
from train.evaluation.scripts import ASCII, script_of

_QUERIES = Path("examples/data/queries.tsv.gz")
_SEED = 0
_LEAST_SEARCHES = 5  # what mining asks for by default
_MOST_MORE = 500
_ZIPF = 2.0  # exponent
_HELDOUT_SHARE = 1 / 8
_FOLLOWED_SHARE = 0.5  # of the sessions
_NEARBY = 3  # places in bytewise order
_START_S = 1_700_000_000
_SPAN_S = 28 * 86_400


def write_log(queries: Sequence[str], out: Path, *, num_ascii: int) -> dict[str, Counter[str]]:
    """Writes the files; returns by kind ("logged", "held_out", "searches") the number by script.

    Raises:
        ValueError: `queries` has fewer than two.
    """
    rng = np.random.default_rng(_SEED)
    distinct = sorted(set(filter(None, map(normalise, queries))), key=str.encode)
    is_ascii = np.array([script_of(q) == ASCII for q in distinct])
    kept = np.flatnonzero(~is_ascii).tolist()
    ascii_rows = np.flatnonzero(is_ascii)
    kept += rng.choice(ascii_rows, min(num_ascii, len(ascii_rows)), replace=False).tolist()
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} queries make no log")
    is_heldout = rng.random(len(kept)) < _HELDOUT_SHARE
    texts = [distinct[row] for row in sorted(kept)]
    heldout = [t for t, h in zip(texts, is_heldout, strict=True) if h]
    logged = [t for t, h in zip(texts, is_heldout, strict=True) if not h]
    num_N = _LEAST_SEARCHES + np.minimum(rng.zipf(_ZIPF, len(logged)) - 1, _MOST_MORE)
    first = rng.permutation(np.repeat(np.arange(len(logged)), num_N))
    second = np.clip(first + rng.integers(1, _NEARBY + 1, len(first)), 0, len(logged) - 1)
    is_followed = rng.random(len(first)) < _FOLLOWED_SHARE
    start_s = np.sort(rng.integers(_START_S, _START_S + _SPAN_S, len(first)))
    out.mkdir(parents=True, exist_ok=True)
    searches: Counter[str] = Counter()
    with (out / "searches.tsv").open("w", encoding="utf-8") as stream:
        stream.write("session\ttime\tquery\n")
        for session, at_s in enumerate(start_s.tolist()):
            rows = [first[session], second[session]][: 1 + int(is_followed[session])]
            for step, row in enumerate(rows):
                stream.write(f"{session}\t{at_s + 20 * step}\t{logged[row]}\n")
                searches[script_of(logged[row])] += 1
    with gzip.open(out / "heldout.txt.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(f"{text}\n" for text in heldout)
    return {
        "logged": Counter(map(script_of, logged)),
        "held_out": Counter(map(script_of, heldout)),
        "searches": searches,
    }


def main() -> int:
    """Reads the arguments, writes the log and prints the JSON line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.languages", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-ascii", type=int, default=20_000, help="(20000)")
    args = parser.parse_args()
    try:
        rows = [line.split("\t")[0] for line in read_lines(_QUERIES)[1:]]
        counts = write_log(rows, args.out, num_ascii=args.num_ascii)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({kind: dict(count) for kind, count in counts.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
