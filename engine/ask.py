"""`queryrec-engine ask`: a real client call, printed as a table. Knows nothing of the server."""

import re
from collections.abc import Sequence

import grpc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from queryrec.client import QueryRecClient, QueryRecError, Recommendation

_MAX_TIMEOUT_MS = 1e12  # the client's, in its unit
# A host alone, an IPv6 address in brackets or bare: gRPC would take the port of HTTPS.
_HAS_NO_PORT = re.compile(
    r"(dns:(///)?)?([^:/]+|\[[^\]]*\]|[\da-f.]*:[\da-f.]*:[\da-f:.]*(%\w+)?)", re.IGNORECASE
)


async def ask(
    target: str,
    scenario: str,
    query: str,
    *,
    session_queries: Sequence[str],
    max_suggestions: int,
    timeout_ms: float,
    clicks: Sequence[int],
) -> bool:
    """Asks, prints, reports clicks; returns whether all of it succeeded."""
    console = Console()
    try:
        if _HAS_NO_PORT.fullmatch(target):
            raise ValueError(
                f"--target {target} has no port; give HOST:PORT, or [HOST]:PORT if it is IPv6"
            )
        if not 0 < timeout_ms <= _MAX_TIMEOUT_MS:
            raise ValueError(
                f"--timeout-ms is {timeout_ms:g}; it must be above 0 and at most "
                f"{_MAX_TIMEOUT_MS:g}"
            )
        async with QueryRecClient(target, timeout_s=timeout_ms / 1000) as client:
            answer = await client.recommend(
                scenario, query, session_queries=session_queries, max_suggestions=max_suggestions
            )
            print_answer(console, query, answer)
            positions = [s.position for s in answer.suggestions]
            if unknown := [p for p in clicks if p not in positions]:
                shown = f"1 to {len(positions)}" if positions else "none"
                _complain(
                    f"no feedback was sent: --clicks {unknown[0]} is not a position of the "
                    f"answer ({shown})"
                )
                return False
            if clicks:
                events = [answer.event("impression", position) for position in positions]
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
