"""Lists that a teacher wrote, a larger language model or editors: examples beside the log's.

A table with a row per list: `scenario`, `query` (of a completing scenario what was typed),
`suggestions` (list of strings, best first) and, optionally, `auxiliary_text`. A teacher is told
the query and nothing else, so a list is as public as its query: it is used where the log's
anonymous queries hold that, or begin with what was typed. Knows nothing of who wrote the lists.
"""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from engine.formats.manifest import ScenarioSpec
from engine.formats.text import normalise_prefix
from train.generation.associations import known_in_training
from train.generation.examples import Source, distinct
from train.generation.prompting import prompted_texts
from train.mining.anonymity import TextFilter

_BATCH_ROWS = 20_000
_LONGEST_PREFIX = 10  # characters typed that a teacher is asked for
_SCHEMA = pa.schema(
    {"scenario": pa.string(), "query": pa.string(), "suggestions": pa.list_(pa.string())}
)


class TeacherLists(NamedTuple):
    """What a table came to."""

    sources: list[Source]
    left_out: dict[str, int]  # rows by reason


def read_lists(
    path: Path, mined: Path, scenarios: Sequence[ScenarioSpec], is_usable: TextFilter
) -> TeacherLists:
    """Returns a source for each list that may be learnt from.

    Args:
        path: parquet file.
        mined: tables of the log.
        scenarios: of the run; lists of others are left out.
        is_usable: refuses single texts of a list, as those of a log.

    Raises:
        ValueError: it is no parquet file, or lacks a column or has one of a wrong type.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"generator.teacher_lists: {path} cannot be read: {error}") from None
    _check(path, file.schema_arrow)
    columns = [*_SCHEMA.names, "auxiliary_text"]
    specs, known = {s.name: s for s in scenarios}, known_in_training(mined)
    known_texts = set(known)
    sources: list[Source] = []
    left_out: Counter[str] = Counter()

    def is_known(query: str, spec: ScenarioSpec) -> bool:
        if not spec.completes_prefix:
            return query in known_texts
        place = bisect_left(known, query)
        return place < len(known) and known[place].startswith(query)

    for batch in file.iter_batches(
        _BATCH_ROWS, columns=[c for c in columns if c in file.schema_arrow.names]
    ):
        for row in batch.to_pylist():
            spec = specs.get(row["scenario"])
            if spec is None:
                left_out["unknown_scenario"] += 1
                continue
            query = normalise_prefix(row["query"] or "")
            query = query if spec.completes_prefix else query.strip()
            if not query or not is_known(query, spec):
                left_out["query_not_in_log"] += 1
                continue
            wanted = _usable(row["suggestions"] or [], query, spec, is_usable)
            if not wanted:
                left_out["nothing_usable"] += 1
                continue
            auxiliary = is_usable(row.get("auxiliary_text") or "").text
            sources.append(
                Source(
                    scenario=spec.name,
                    query=query,
                    session_queries=(),
                    further=(),
                    wanted=tuple(wanted),
                    auxiliary_text=auxiliary if spec.has_auxiliary_text else None,
                    is_typed=spec.completes_prefix,
                )
            )
    return TeacherLists(sources, dict(sorted(left_out.items())))


def write_lists(
    checkpoint: str,
    mined: Path,
    scenarios: Sequence[ScenarioSpec],
    out: Path,
    *,
    num_lists: int,
    seed: int,
    report: Callable[[str], None],
) -> int:
    """Has a language model write lists for known queries, in turns for each scenario.

    The same prefix of two queries is asked for once.

    Args:
        checkpoint: hub id, directory or GGUF file of a causal language model.
        mined: tables of the log.
        scenarios: of the run.
        out: parquet file. What is written is kept beside it until all of it is.
        num_lists: at most, over all scenarios.
        seed: of the draw of queries.
        report: called with how far it is.

    Returns:
        The number of lists with any text.

    Raises:
        ValueError: the checkpoint cannot be loaded, or `out` is there already.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: name another file, or remove it")
    rng = random.Random(seed)
    texts = known_in_training(mined)
    drawn = rng.sample(texts, min(len(texts), num_lists))
    questions: dict[tuple[str, str], None] = {}
    for spec, text in zip(cycle(scenarios), drawn, strict=False):
        if spec.completes_prefix:
            text = normalise_prefix(text[: rng.randint(1, min(len(text), _LONGEST_PREFIX))])
        questions[spec.name, text] = None
    asked = list(questions)
    kept = out.with_name(out.name + ".written")
    written = prompted_texts(
        checkpoint, asked, {s.name: s for s in scenarios}, kept=kept, report=report
    )
    rows = [
        {"scenario": scenario, "query": query, "suggestions": found}
        for (scenario, query), found in zip(asked, written, strict=True)
        if found
    ]
    partial = out.with_name(out.name + ".partial")
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), partial)
    partial.replace(out)
    kept.unlink()
    return len(rows)


def _check(path: Path, schema: pa.Schema) -> None:
    wrong: list[str] = []
    for name in (*_SCHEMA.names, "auxiliary_text"):
        if name not in schema.names:
            if name in _SCHEMA.names:
                wrong.append(f"{name} is missing")
            continue
        kind: Any = schema.field(name).type
        inner = kind
        if name == "suggestions":
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            inner = kind.value_type if is_list else None
        if inner is None or not _is_text(inner):
            wrong.append(f"{name} is {kind}")
    if wrong:
        raise ValueError(
            f"generator.teacher_lists: {path}: {', '.join(wrong)}; wanted are scenario and query "
            "(strings), suggestions (lists of strings) and, if there are any, auxiliary_text"
        )


def _is_text(kind: Any) -> bool:
    return any(f(kind) for f in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null))


def _usable(
    texts: Sequence[str | None], query: str, spec: ScenarioSpec, is_usable: TextFilter
) -> list[str]:
    """Returns the texts that may be suggested for the query, each once, in their order."""
    usable = [text for raw in texts if (text := is_usable(raw or "").text) is not None]
    if spec.completes_prefix:
        usable = [text for text in usable if text.startswith(query)]
    return distinct(usable, {query}, len(usable))
