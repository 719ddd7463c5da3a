"""Simulated users: what they ask, and what they click. Knows nothing of engines or models."""

# R lists, N positions
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.formats.text import normalise, normalise_prefix
from train import simulator
from train.settings import SimulateConfig
from train.simulator import clicks, sessions, world
from train.simulator.impressions import NUM_SESSION_QUERIES
from train.simulator.simulation import SHARES


class Asked(NamedTuple):
    """A question of a user."""

    scenario: str
    query: str
    session_queries: tuple[str, ...]  # oldest first
    user: str
    unit: str  # whom questions depend on alike: a user, or of unseen queries the query


class Answered(NamedTuple):
    """What the user saw."""

    asked: Asked
    texts: Sequence[str]
    auxiliary_text: str


class Users:
    """The users of the world that a run's logs come from."""

    def __init__(self, simulated: Path, config: SimulateConfig, *, seed: int) -> None:
        """Makes the world again.

        Raises:
            ValueError: it is another one than that of the logs.
        """
        made = world.make(
            Path(config.queries),
            Path(config.heldout),
            num_logged_queries=config.num_queries,
            seed=seed,
            click_model=config.click_model,
        )
        self.truth = simulator.load(simulated)
        if made.truth.fingerprint() != self.truth.fingerprint():
            raise ValueError(f"{simulated}: is not the world that the run's configuration makes")
        self._queries = made.corpus.logged
        self._behaviour = sessions.learn(made.truth, made.corpus, seed=seed)

    def questions(self, num: int, *, seed: int) -> list[Asked]:
        """Returns questions of fresh sessions; another seed is other users."""
        rng = np.random.default_rng([seed, 11])
        searches = sessions.walk(
            self._behaviour, num_searches=num, num_users=max(1, num // 4), num_days=1, seed=seed
        )
        names, shares = list(SHARES), list(SHARES.values())
        scenarios = rng.choice(names, len(searches.query), p=shares).tolist()
        asked: list[Asked] = []
        for row, scenario in enumerate(scenarios[:num]):
            first = row - min(int(searches.step[row]), NUM_SESSION_QUERIES)
            earlier = tuple(self._queries[i] for i in searches.query[first:row].tolist())
            query = self._queries[int(searches.query[row])]
            user = f"u{searches.user[row]}"
            asked.append(_asked(scenario, query, earlier, rng, user=user, unit=user))
        return asked

    def unseen(self, queries: Sequence[str], num: int, *, seed: int) -> list[Asked]:
        """Returns questions with queries that no log holds, each in every scenario."""
        rng = np.random.default_rng([seed, 12])
        chosen = rng.choice(len(queries), min(num, len(queries)), replace=False).tolist()
        drawn = [queries[int(i)] for i in chosen]
        return [_asked(name, q, (), rng, user="", unit=q) for q in drawn for name in SHARES]

    def clicks(self, answered: Sequence[Answered], *, seed: int) -> list[list[bool]]:
        """Returns which places of each list are clicked."""
        rng = np.random.default_rng([seed, 13])
        clicked: list[list[bool]] = [[] for _ in answered]
        for scenario, places, lists in _by_scenario(answered):
            attraction_RN = self.truth.attraction_after_fatigue(scenario, **lists)
            drawn_RN = clicks.draw(attraction_RN, scenario, self.truth.click_model, rng)
            for place, row in zip(places, drawn_RN.tolist(), strict=True):
                clicked[place] = row[: len(answered[place].texts)]
        return clicked

    def click_rates(self, answered: Sequence[Answered], num_places: int) -> np.ndarray:
        """Returns the true P(click) of a place of each list; a place without text has none, (R)."""
        rate_R = np.zeros(len(answered))
        for scenario, places, lists in _by_scenario(answered):
            p_click = self.truth.list_click_probabilities(scenario, **lists)
            rate_R[places] = [float(p.sum()) / num_places for p in p_click]
        return rate_R


def _asked(
    scenario: str,
    query: str,
    earlier: tuple[str, ...],
    rng: np.random.Generator,
    *,
    user: str,
    unit: str,
) -> Asked:
    if scenario == "completion":
        length = 1 + int(rng.beta(1.4, 1.8) * (len(query) - 1))  # as the logs' users type
        query = normalise_prefix(query[:length]) or query
    else:
        query = normalise(query)
    return Asked(scenario, query, earlier, user, unit)


def _by_scenario(answered: Sequence[Answered]):
    """Yields each scenario, the places of its lists, and the lists as the truth takes them."""
    for scenario in SHARES:
        places = [i for i, a in enumerate(answered) if a.asked.scenario == scenario]
        own = [answered[i] for i in places]
        if own:
            yield (
                scenario,
                places,
                {
                    "queries": [a.asked.query for a in own],
                    "listings": [a.texts for a in own],
                    "sessions": [a.asked.session_queries for a in own],
                    "questions": [a.auxiliary_text for a in own],
                },
            )
