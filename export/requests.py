"""Sample requests of a run: what parity is checked and activations are measured on.

Queries come from the mined log; sessions and co-occurring queries are drawn at random. Knows
nothing of graphs.
"""

from typing import NamedTuple

import numpy as np

from engine.formats.manifest import MAX_CANDIDATE_TOKENS
from engine.formats.prompt import COOCCURRING, SESSION, Prompt, SideInformation, token_limits
from engine.formats.vocabulary import LIST
from export.checkpoint import Run


class SampleRequest(NamedTuple):
    """One request, rendered."""

    scenario: str
    query: str
    prompt: Prompt
    context_ids: list[int]  # of the click model
    candidates: list[str]


class Decoding(NamedTuple):
    """How one request is decoded: a starting token and a limit per sequence."""

    slots: list[int]
    max_new_tokens: list[int]


def sample_requests(run: Run, num_requests: int, seed: int) -> list[SampleRequest]:
    """Returns requests over all scenarios in turn.

    With 0 to 2 session and 0 to 5 other queries, and 1 to 16 candidates.
    """
    rng = np.random.default_rng(seed)
    queries, requests = run.queries, list[SampleRequest]()
    for number in range(num_requests):
        scenario = run.scenarios[number % len(run.scenarios)]
        drawn = [queries[i] for i in rng.integers(0, len(queries), 16)]
        query = drawn[0]
        if scenario.completes_prefix:
            query = query[: int(rng.integers(1, len(query) + 1))].lstrip() or query
        sessions = [SideInformation(SESSION, t) for t in drawn[1 : 1 + rng.integers(0, 3)]]
        others = [SideInformation(COOCCURRING, t) for t in drawn[3 : 3 + rng.integers(0, 6)]]
        requests.append(
            SampleRequest(
                scenario.name,
                query,
                run.renderer.generation_prompt(scenario.name, query, [*others, *sessions]),
                run.renderer.click_context(scenario.name, query, sessions),
                drawn[number % 16 :],
            )
        )
    return requests


def decoding(run: Run, scenario_name: str, mode: str) -> Decoding:
    """Returns the slots and limits of a scenario in a decoding mode."""
    scenario = next(s for s in run.scenarios if s.name == scenario_name)
    limits = token_limits(scenario, mode)
    if mode == "list":
        return Decoding([run.vocabulary.control_id(LIST)], limits)
    return Decoding(run.renderer.slot_ids(scenario_name, mode), limits)


def max_new_tokens(run: Run, mode: str) -> int:
    """Returns the longest sequence that any scenario asks for."""
    return max(max(decoding(run, s.name, mode).max_new_tokens) for s in run.scenarios)


def candidate_ids(run: Run, texts: list[str]) -> list[list[int]]:
    """Returns the ids of candidates as the engine cuts them."""
    return [ids[:MAX_CANDIDATE_TOKENS] for ids in run.vocabulary.encode_batch(texts)]
