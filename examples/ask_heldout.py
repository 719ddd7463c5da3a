"""Asks a running engine ($TARGET) for 12 held-out real queries and prints what it suggests."""

import asyncio
import gzip
import os
import random
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from queryrec.client import QueryRecClient

HELDOUT = Path(__file__).parent / "data/heldout.txt.gz"
SCENARIOS = ("suggestion", "completion", "clarification")
NUM_QUERIES = 12


async def main() -> None:
    with gzip.open(HELDOUT, "rt", encoding="utf-8") as stream:
        queries = [line.strip() for line in stream if 2 <= len(line.split()) <= 4]
    chosen = random.Random(5).sample([q for q in queries if q.isascii()], NUM_QUERIES)
    console = Console(width=min(110, Console().width))
    async with QueryRecClient(os.environ["TARGET"], timeout_s=5) as client:
        for number, query in enumerate(chosen):
            scenario = SCENARIOS[number % len(SCENARIOS)]
            if scenario == "completion":
                query = query[: max(3, len(query) // 2)]
            answer = await client.recommend(scenario, query)
            title = f"{scenario}: [bold]{query!r}[/bold]"
            if answer.auxiliary_text:
                title += f"\n{answer.auxiliary_text}"
            table = Table("p(click)", "suggestion", "source", title=title, title_justify="left")
            for suggestion in answer.suggestions:
                sources = " + ".join(str(s) for s in suggestion.sources)
                table.add_row(f"{suggestion.click_probability:.3f}", suggestion.text, sources)
            console.print(table)
            stages = ", ".join(f"{s} {us / 1000:.1f}" for s, us in answer.stage_us.items() if us)
            console.print(f"[dim]ms: {stages}[/dim]\n")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyError:
        sys.exit("TARGET is not set: give the engine's address, such as 127.0.0.1:50051")
