"""Asks a bundle for held-out real queries, checks the answers, and writes the lists it made.

    python -m benchmarks.heldout --bundle DIR --target HOST:PORT --out lists.jsonl

Every query is asked in every scenario; for completion, a prefix of it. Two systems are written,
one JSON line a list, for `benchmarks.truth` to score:

  engine      the served answer: log and generated candidates, ranked by the click model
  generator   what the generator alone writes, in slot order, with co-occurring queries in its
              prompt as when serving; neither index candidates nor click model

The checks are of the served answers. The last line of stdout is JSON: shares of answers with at
least five distinct suggestions, without the query itself, and (completion) with the prefix; the
share of suggestions that the generator wrote; how often the generator alone repeats itself.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path

from engine.answering.candidates import key_of
from engine.formats.manifest import ScenarioSpec
from queryrec.client import QueryRecClient, Recommendation
from train.evaluation.served import Asked, ServedBundle, distinct_texts
from train.evaluation.suite import questions_of, read_queries

NUM_SUGGESTIONS = 5
HELDOUT = Path("examples/data/heldout.txt.gz")


class GeneratorAlone:
    """The generator of a bundle without ranking and without candidates from the log."""

    def __init__(self, served: ServedBundle) -> None:
        self._served = served

    def suggest(self, scenario: str, query: str) -> tuple[list[str], str, int]:
        """Returns distinct texts in slot order, the auxiliary text, and how many were repeats."""
        texts = self._served.written(scenario, [Asked(query)])[0]
        distinct = distinct_texts(query, texts, 32)
        auxiliary = texts.auxiliary.text if texts.auxiliary else ""
        num_written = len(texts.finished) + len(texts.cut)
        return distinct, auxiliary, num_written - len(distinct)


def checked(scenario: ScenarioSpec, query: str, answer: Recommendation) -> Counter[str]:
    """Returns which properties an answer has."""
    texts = [s.text for s in answer.suggestions]
    keys = {key_of(t) for t in texts}
    return Counter(
        answers=1,
        has_five=len(keys) >= NUM_SUGGESTIONS,
        is_distinct=len(keys) == len(texts),
        lacks_query=key_of(query) not in keys,
        has_prefix=not scenario.completes_prefix or all(t.startswith(query) for t in texts),
        is_undegraded=not [o for o in answer.omissions if o.reason != "cached"],
        suggestions=len(texts),
        generated=sum("generated" in s.sources for s in answer.suggestions),
    )


async def run(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Asks all questions; returns the shares by scenario.

    Raises:
        ValueError: the file has fewer queries that can be asked than it should.
    """
    queries = read_queries(arguments.heldout)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with (
        closing(ServedBundle(arguments.bundle)) as served,
        arguments.out.open("w", encoding="utf-8") as out,
    ):
        questions = questions_of(served, queries, arguments.num, arguments.seed)
        num = len(questions) // len(served.bundle.scenarios)
        if num < arguments.num:
            raise ValueError(
                f"{arguments.heldout} has {num} queries of 4 characters to 200 bytes, --num is "
                f"{arguments.num}; ask fewer or give a longer file"
            )
        alone = GeneratorAlone(served)

        def write(system: str, scenario: str, query: str, texts: list[str], auxiliary: str) -> None:
            record = {
                "scenario": scenario, "query": query, "system": system,
                "texts": texts[:NUM_SUGGESTIONS], "auxiliary_text": auxiliary,
            }  # fmt: skip
            out.write(json.dumps(record, ensure_ascii=False) + "\n")

        async with QueryRecClient(arguments.target, timeout_s=5) as client:
            for number, (scenario, query) in enumerate(questions, start=1):
                answer = await client.recommend(scenario, query)
                counts[scenario] += checked(served.scenario(scenario), query, answer)
                shown = [s.text for s in answer.suggestions]
                write("engine", scenario, query, shown, answer.auxiliary_text)
                texts, auxiliary, num_repeats = alone.suggest(scenario, query)
                write("generator", scenario, query, texts, auxiliary)
                counts[scenario]["alone"] += len(texts)
                counts[scenario]["alone_repeats"] += num_repeats
                if number % 100 == 0:
                    print(f"{number} of {len(questions)} asked", file=sys.stderr)
    shares: dict[str, dict[str, float]] = {}
    for scenario, count in counts.items():
        names = ("has_five", "is_distinct", "lacks_query", "has_prefix", "is_undegraded")
        shares[scenario] = {name: count[name] / count["answers"] for name in names}
        shares[scenario]["generated_share"] = count["generated"] / max(1, count["suggestions"])
        shares[scenario]["generator_texts"] = count["alone"] / count["answers"]
        shares[scenario]["generator_repeats"] = count["alone_repeats"] / count["answers"]
    return shares


def main() -> None:
    """Reads the arguments and prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--target", required=True, help="an engine that serves the same bundle")
    parser.add_argument("--heldout", type=Path, default=HELDOUT)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    try:
        print(json.dumps(asyncio.run(run(parser.parse_args()))))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
