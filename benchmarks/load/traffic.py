"""What requests ask: scenarios by their weights, queries by how they should repeat."""

import itertools
import random
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from google.protobuf import duration_pb2

from benchmarks.load.settings import Load
from queryrec.v1 import query_recommender_service_pb2 as service_pb2

_COMPLETION = "completion"
_CHUNK = 4096  # queries drawn at once
_MAX_DRAWS = 100  # for a prompt that is new


class Request(NamedTuple):
    """A message as it travels: a seventh of the object's memory."""

    scenario: str
    message: bytes


def serialised(load: Load) -> Iterator[Request]:
    """Yields what `requests` does, ready to be sent."""
    for request in requests(load):
        yield Request(sys.intern(request.scenario), request.SerializeToString())


def requests(load: Load) -> Iterator[service_pb2.RecommendRequest]:
    """Yields requests without end; the same ones for the same seed."""
    rng = random.Random(load.seed)
    names, weights = list(load.mix), list(load.mix.values())
    budget = duration_pb2.Duration()
    budget.FromMicroseconds(round(load.budget_ms * 1000))
    seen: set[tuple[str, ...]] = set()
    for number, query in enumerate(_queries(load, rng)):
        (scenario,) = rng.choices(names, weights)
        if scenario == _COMPLETION:
            query = query[: rng.randint(max(1, len(query) // 2), len(query))].rstrip() or query
        session = ()
        if load.prompts == "distinct":
            session = _making_new(seen, (scenario, query), load, rng)
        yield service_pb2.RecommendRequest(
            scenario=scenario,
            query=query,
            session_queries=session,
            session_id=f"load-{load.seed}-{number}",
            latency_budget=budget,
        )


def _queries(load: Load, rng: random.Random) -> Iterator[str]:
    if load.prompts == "order":
        return itertools.cycle(load.queries)
    queries = list(load.queries)
    rng.shuffle(queries)
    return _by_popularity(load, queries) if load.prompts == "zipf" else itertools.cycle(queries)


def _by_popularity(load: Load, queries: list[str]) -> Iterator[str]:
    """Yields queries of which the r-th has a share proportional to 1 / r ** exponent."""
    rng = np.random.default_rng(load.seed)
    weights = np.arange(1, len(queries) + 1, dtype=np.float64) ** -load.zipf_exponent
    share = weights / weights.sum()
    while True:
        yield from (queries[i] for i in rng.choice(len(queries), size=_CHUNK, p=share).tolist())


def _making_new(
    seen: set[tuple[str, ...]], asked: tuple[str, str], load: Load, rng: random.Random
) -> tuple[str, ...]:
    """Returns earlier queries of a session with which this prompt was never sent: none at first."""
    session: tuple[str, ...] = ()
    for _ in range(_MAX_DRAWS):
        if (*asked, *session) not in seen:
            seen.add((*asked, *session))
            return session
        session = (rng.choice(load.queries), rng.choice(load.queries))
    raise ValueError(
        f"--prompts distinct: {len(load.queries)} queries give no more than about {len(seen)} "
        "distinct prompts; use a longer file or send fewer"
    )
