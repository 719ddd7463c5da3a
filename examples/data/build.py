"""Makes the example data from its public sources; knows nothing of the simulator or of training.

    python examples/data/build.py SOURCE_DIRECTORY [--out DIRECTORY]

SOURCE_DIRECTORY holds the sources as plain query lists:

- `esci_queries.csv.gz` (`query,count`): the distinct queries of the Shopping Queries Dataset,
- `web_queries_train.tsv.gz`, `web_queries_test.tsv.gz` (`query<TAB>sources`): TREC Million Query
  2007-2009, TREC Terabyte 2005 efficiency queries and the Bing coronavirus query set,
- `trec_sessions.jsonl.gz` (`turns[].q`, `turns[].results[].title`, `current`): TREC Session track
  2012 and 2013.

It writes `queries.tsv.gz` (`query, source, slice`), `heldout.txt.gz` and its part that is not about
shopping, `heldout_web.txt.gz` (one query a line), and `sessions.jsonl.gz` (`queries, titles`), all
byte-for-byte reproducible, the queries sorted. A held-out query, in any word order or punctuation,
is not in `queries.tsv.gz`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import html
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HELDOUT_SHOPPING_SHARE = 0.016  # of the ASCII shopping queries: about 1,700
MAX_CHARS = 100
MAX_TITLES = 3  # of what a user was shown for a query

_WORD = re.compile(r"\w+")
_EMAIL = re.compile(r"\S+@\S+\.\S+")
# US phone numbers and social security numbers, with the separators people type.
_PHONE = re.compile(r"(?<!\d)(?:1[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?!\d)")
_SSN = re.compile(r"(?<!\d)\d{3}[ -]\d{2}[ -]\d{4}(?!\d)")
_LONG_NUMBER = re.compile(r"\d{8,}")
_URL = re.compile(r"https?:|\bwww\b|://")


class Row(NamedTuple):
    """One query and where it comes from."""

    query: str
    source: str
    slice: str


class WordList:
    """Answers whether a query holds unsafe text, by the rules at the top of `unsafe_words.txt`."""

    def __init__(self, path: Path) -> None:
        entries = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        entries = [entry for entry in entries if entry and not entry.startswith("#")]
        self._unsafe = _pattern([e for e in entries if e[0] not in "~+"])
        self._conditional = _pattern([e[1:] for e in entries if e[0] == "~"])
        self._companions = _pattern([e[1:] for e in entries if e[0] == "+"])

    def is_unsafe(self, query: str) -> bool:
        """Returns whether the normalised query has to stay out."""
        text = " ".join(_WORD.findall(query))
        if self._unsafe.search(text):
            return True
        return bool(self._conditional.search(text)) and not self._companions.search(text)


def normalised(text: str) -> str:
    """Returns NFKC text in lower case, without control characters, single-spaced."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    text = re.sub(r"(?<!\S)[+\"]+|[\"]+(?!\S)", " ", text)  # search operators: +word, "phrase"
    return " ".join(text.split())


def is_personal(query: str) -> bool:
    """Returns whether the query looks like an address, a phone number or another identifier."""
    patterns = (_EMAIL, _PHONE, _SSN, _LONG_NUMBER)
    return any(pattern.search(query) for pattern in patterns)


def slice_of(query: str) -> str:
    """Returns `ascii`, `latin` (accents: mostly Spanish), `japanese` or `other`."""
    if query.isascii():
        return "ascii"
    names = [unicodedata.name(c, "") for c in query if c.isalpha()]
    if any(n.startswith(("HIRAGANA", "KATAKANA", "CJK")) for n in names):
        return "japanese"
    return "latin" if all(n.startswith("LATIN") for n in names) else "other"


def main() -> None:
    """Reads the arguments, builds both files and prints what was kept."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Builds the example data.")
    parser.add_argument("sources", type=Path, help="directory that holds the source files")
    parser.add_argument("--out", type=Path, default=here, help="where to write (default: here)")
    arguments = parser.parse_args()
    word_list = WordList(here / "unsafe_words.txt")

    num_read = 0
    pool: dict[str, str] = {}
    heldout: dict[str, str] = {}
    for query, source in _source_queries(arguments.sources):
        num_read += 1
        query = normalised(query)
        if not _is_usable(query) or word_list.is_unsafe(query):
            continue
        if source == "heldout" or (source == "esci" and _is_heldout_shopping(query)):
            heldout.setdefault(query, source)
        else:
            pool.setdefault(query, source)

    arguments.out.mkdir(parents=True, exist_ok=True)
    heldout_keys = {key for query in heldout for key in _keys(query)}
    rows = [
        Row(query, source, slice_of(query))
        for query, source in sorted(pool.items())
        if not any(key in heldout_keys for key in _keys(query))
    ]
    lines = ["query\tsource\tslice", *("\t".join(row) for row in rows)]
    _write(arguments.out / "queries.tsv.gz", lines)
    _write(arguments.out / "heldout.txt.gz", sorted(heldout))
    web = sorted(query for query, source in heldout.items() if source == "heldout")
    _write(arguments.out / "heldout_web.txt.gz", web)
    sessions = list(_sessions(arguments.sources, word_list))
    _write(arguments.out / "sessions.jsonl.gz", sessions)
    print(
        f"read {num_read:,}, kept {len(rows):,}, held out {len(heldout):,} ({len(web):,} of the "
        f"web), {len(sessions)} sessions"
    )


def _source_queries(directory: Path) -> Iterator[tuple[str, str]]:
    with _open(directory / "web_queries_test.tsv.gz") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield row["query"], "heldout"
    with _open(directory / "web_queries_train.tsv.gz") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield row["query"], row["sources"].split(",")[0]
    with _open(directory / "trec_sessions.jsonl.gz") as file:
        for line in file:
            session = json.loads(line)
            for query in [*(turn["q"] for turn in session["turns"]), session.get("current")]:
                yield query or "", "trec_session"
    with _open(directory / "esci_queries.csv.gz") as file:
        for row in csv.DictReader(file):
            yield row["query"], "esci"


def _sessions(directory: Path, word_list: WordList) -> Iterator[str]:
    """Yields the sessions without a text that has to stay out, as JSON."""
    with _open(directory / "trec_sessions.jsonl.gz") as file:
        for line in file:
            session = json.loads(line)
            queries = [normalised(turn["q"]) for turn in session["turns"]]
            if session.get("current"):
                queries.append(normalised(session["current"]))
            titles = [
                [
                    title
                    for result in turn["results"]
                    if (title := " ".join(html.unescape(result["title"] or "").split()))
                    and not word_list.is_unsafe(normalised(title))
                    and not is_personal(title)
                ][:MAX_TITLES]
                for turn in session["turns"]
            ]
            if all(_is_usable(q) and not word_list.is_unsafe(q) for q in queries):
                yield json.dumps({"queries": queries, "titles": titles}, ensure_ascii=False)


def _open(path: Path):
    if not path.is_file():
        sys.exit(f"missing source file {path.name} in {path.parent}; see the text of build.py")
    return gzip.open(path, "rt", encoding="utf-8", newline="")


def _write(path: Path, lines: list[str]) -> None:
    # mtime 0 and no file name: the same input gives the same bytes.
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


def _is_usable(query: str) -> bool:
    if not 2 <= len(query) <= MAX_CHARS or not any(c.isalpha() for c in query):
        return False
    return not is_personal(query) and not _URL.search(query)


def _is_heldout_shopping(query: str) -> bool:
    if not query.isascii():
        return False
    fraction = int.from_bytes(hashlib.sha256(query.encode()).digest()[:4], "big") / 2**32
    return fraction < HELDOUT_SHOPPING_SHARE


def _keys(query: str) -> tuple[str, str]:
    words = _WORD.findall(query)
    return " ".join(sorted(words)), "".join(words)


def _pattern(entries: list[str]) -> re.Pattern[str]:
    parts = [re.escape(entry).replace(r"\*", r"\w*").replace(r"\ ", " ") for entry in entries]
    return re.compile(rf"\b(?:{'|'.join(parts)})\b")


if __name__ == "__main__":
    main()
