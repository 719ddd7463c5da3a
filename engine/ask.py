"""`queryrec-engine ask`: a real client call, printed as a table. Knows nothing of the server."""

from collections.abc import Sequence

import grpc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from queryrec.client import QueryRecClient, QueryRecError, Recommendation


async def ask(
    target: str,
    scenario: str,
    query: str,
    *,
    session_queries: Sequence[str],
    max_suggestions: int,
    timeout_s: float,
    clicks: Sequence[int],
) -> bool:
    """Asks, prints, reports clicks; returns whether all of it succeeded."""
    console = Console()
    try:
        async with QueryRecClient(target, timeout_s=timeout_s) as client:
            answer = await client.recommend(
                scenario, query, session_queries=session_queries, max_suggestions=max_suggestions
            )
            print_answer(console, query, answer)
            if clicks:
                events = [answer.event("impression", s.position) for s in answer.suggestions]
                events += [answer.event("click", position) for position in clicks]
                receipt = await client.record_feedback(events)
                console.print(f"feedback: {receipt.num_accepted} events stored")
                for refusal in receipt.refusals:
                    console.print(f"feedback refused: {refusal.message}", markup=False)
                return not receipt.refusals
    except QueryRecError as error:
        _complain(f"{error.code.name}: {error}" if error.reason else str(error))
        if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
            _complain(f"is an engine running at {target}?")
        return False
    except UnicodeEncodeError:
        _complain("cannot ask: the query is not UTF-8")
        return False
    except ValueError as error:  # an argument that no request can have
        _complain(f"cannot ask: {error}")
        return False
    return True


def print_answer(console: Console, query: str, answer: Recommendation) -> None:
    """Prints suggestions, stage times and what was left out."""
    if answer.auxiliary_text:
        console.print(answer.auxiliary_text, markup=False, style="bold")
    table = Table(title=None, title_justify="left")
    table.add_column("#", justify="right")
    table.add_column(Text(f"suggestions for {query!r}"))  # Text: what looks like markup is none
    table.add_column("source")
    table.add_column("p(click)", justify="right")
    is_scored = not any(o.stage == "score" and o.kind == "skipped" for o in answer.omissions)
    for s in answer.suggestions:
        table.add_row(
            str(s.position),
            Text(s.text),
            " + ".join(s.sources),
            f"{s.click_probability:.3f}" if is_scored else "-",  # a guess from the position alone
        )
    console.print(table)
    stages = ", ".join(f"{name} {us / 1000:.1f}" for name, us in answer.stage_us.items())
    console.print(f"ms: {stages}")
    for omission in answer.omissions:
        console.print(f"{omission.kind}: {omission.stage} ({omission.reason})")


def _complain(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, markup=False)
