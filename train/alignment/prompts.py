"""Prompts that lists are drawn for: requests of the mined log, as the generator would read them.

For completion also prefixes of known queries without a session, as `train.generation.examples` has
them.

Knows nothing of what is drawn, or of rewards.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engine.formats.manifest import ScenarioSpec
from engine.formats.prompt import COOCCURRING, Prompt, SideInformation, token_limits
from engine.formats.vocabulary import LIST
from train.generation.associations import Associations
from train.generation.examples import ExampleConfig, ExampleMaker, Source, read_clicks, read_sources
from train.generation.generator import RunPrompts
from train.generation.sampler import ListPrompt

_SPLITS = ("train", "valid")
_MANY_NEW = 20  # requests that training has not, enough to do without those that it has


class AlignmentPrompt(NamedTuple):
    """A request, and what its lists are drawn from."""

    scenario: ScenarioSpec
    query: str
    side_information: list[SideInformation]  # without what the index gives
    is_cold: bool  # without what the index gives
    rendered: Prompt
    drawn: ListPrompt
    clicked: tuple[str, ...] = ()  # what was clicked in the log, if this is a logged panel


class PromptSource:
    """Draws prompts of a split of the mined log, the same number for each scenario.

    What was asked in the same session before the validation cut, too, is not held out: such
    requests are left out of "valid", unless that leaves a scenario fewer than 20 and than half.
    """

    def __init__(
        self,
        mined: Path,
        prompts: RunPrompts,
        *,
        mode: str,
        cold_share: float,
        max_edges: int,
        seed: int,
    ) -> None:
        """Reads the log.

        Args:
            mined: what mining wrote.
            prompts: how requests are rendered.
            mode: "slots", "list" or "beam".
            cold_share: of the prompts, without what the index would give.
            max_edges: of the index.
            seed: of the order.
        """
        self._prompts, self._mode, self._seed = prompts, mode, seed
        config = ExampleConfig(
            scenarios=prompts.scenarios,
            prompt=prompts.prompt,
            cold_share=cold_share,
            max_contexts_per_query=4,  # lists for many queries teach more than many for one
        )
        clicks = read_clicks(mined, "train", prompts.scenarios)
        self._make = ExampleMaker(config, Associations.load(mined, clicks, max_edges=max_edges))
        self._sources = {split: self._by_scenario(mined, config, split) for split in _SPLITS}
        learnt = {_request(s) for own in self._sources["train"].values() for s in own}
        for name, own in self._sources["valid"].items():
            new = [source for source in own if _request(source) not in learnt]
            if len(new) >= min(_MANY_NEW, len(own) / 2):
                self._sources["valid"][name] = new

    def draw(self, split: str, num_prompts: int, number: int) -> list[AlignmentPrompt]:
        """Returns up to `num_prompts` different prompts.

        Args:
            split: "train" or "valid".
            num_prompts: over all scenarios.
            number: another number draws others, until the log has no more.
        """
        drawn: list[AlignmentPrompt] = []
        sources = self._sources[split]
        for place, (name, own) in enumerate(sources.items()):
            share = (num_prompts + len(sources) - 1 - place) // len(sources)
            rng = random.Random(f"{self._seed} {name} {number}")
            seen: set[tuple[int, ...]] = set()
            for offset in range(len(own)):
                if len(seen) == share:
                    break
                source = own[(number * share + offset) % len(own)]
                example = self._make(source, rng)
                if example is None:
                    continue
                prompt = render(
                    self._prompts, self._mode, name, example.query, example.side_information
                )
                if tuple(prompt.rendered.ids) not in seen:
                    seen.add(tuple(prompt.rendered.ids))
                    drawn.append(
                        prompt._replace(clicked=source.wanted) if source.is_clicked else prompt
                    )
        return drawn

    def _by_scenario(
        self, mined: Path, config: ExampleConfig, split: str
    ) -> dict[str, list[Source]]:
        sources: dict[str, list[Source]] = {s.name: [] for s in config.scenarios}
        for source in read_sources(mined, config, split, self._seed):
            sources[source.scenario].append(source)
        return {name: own for name, own in sources.items() if own}


def _request(source: Source) -> tuple[str, str, tuple[str, ...]]:
    return source.scenario, source.query, source.session_queries


def render(
    prompts: RunPrompts,
    mode: str,
    scenario: str,
    query: str,
    side_information: Sequence[SideInformation],
) -> AlignmentPrompt:
    """Returns a request as a prompt; of its side information, what matters most comes last."""
    renderer = prompts.renderer
    spec = next(s for s in prompts.scenarios if s.name == scenario)
    rendered = renderer.generation_prompt(scenario, query, side_information)
    slots, limits = renderer.slot_ids(scenario, mode), token_limits(spec, mode)
    if mode == "list":
        slots = [renderer.vocabulary.control_id(LIST)]
    kept = [item for item in side_information if item.kind != COOCCURRING]
    is_cold = len(kept) == len(side_information)
    drawn = ListPrompt(rendered.ids, slots, limits, rendered.first_token_range)
    return AlignmentPrompt(spec, query, kept, is_cold, rendered, drawn)
