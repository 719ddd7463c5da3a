"""Lists that a generator writes for questions, without candidates of the log and without reranking.

Prompts and look-ups are those of a served bundle; the weights may be any of its run. Knows nothing
of what lists are worth.
"""

# K lists of a question, S sequences of a list
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from engine.answering.candidates import key_of
from engine.formats.prompt import COOCCURRING, SideInformation
from train.alignment.preferences import drawn_texts, ranked_texts
from train.alignment.prompts import AlignmentPrompt, render
from train.alignment.reward import list_reward, ranking
from train.alignment.rollouts import Drawn, Worth, draw_lists, judge_lists
from train.clicks.calibration import read_examination
from train.clicks.judge import ClickJudge
from train.evaluation.lists import ProducedList
from train.evaluation.served import Asked, ServedBundle
from train.generation.generator import read_prompts
from train.generation.sampler import Sampler
from train.models.trained import load_trained


class Question(NamedTuple):
    """What lists are written for; the text is normalised."""

    scenario: str
    query: str


class PolicyLists:
    """Has generators of one run write lists for the same questions."""

    def __init__(
        self,
        run: Path,
        served: ServedBundle,
        questions: Sequence[Question],
        *,
        max_edges: int,
        num_listed: int,
        confidence: float,
    ) -> None:
        """Looks up what the prompts need.

        Args:
            run: run directory, with a click model.
            served: its bundle.
            questions: of its scenarios.
            max_edges: of the index.
            num_listed: N, texts of a list.
            confidence: see `train.alignment.preferences`.

        Raises:
            ValueError: the bundle has no generator, or the run no click model.
        """
        generator = served.bundle.manifest.generator
        if generator is None:
            raise ValueError("the bundle has no generator")
        self._mode, self._num_listed = generator.mode, num_listed
        self._confidence = confidence
        prompts = read_prompts(run)
        self._vocabulary = prompts.renderer.vocabulary
        self._judge = ClickJudge(run, max_edges=max_edges)
        self._seen = read_examination(run)
        self._prompts: dict[bool, list[AlignmentPrompt]] = {True: [], False: []}
        for question in questions:
            (found,) = served.retrieved(question.scenario, [Asked(question.query)])
            warm = [SideInformation(COOCCURRING, t) for t in found.cooccurring[::-1]]
            for is_cold, side in ((True, []), (False, warm)):
                self._prompts[is_cold].append(render(prompts, self._mode, *question, side))

    def greedy(self, directory: Path, name: str, *, is_cold: bool) -> list[ProducedList]:
        """Returns the list that would be served for each question, likeliest text first.

        Args:
            directory: of the generator.
            name: of the system.
            is_cold: without co-occurring queries in the prompt.
        """
        drawn = self._drawn(directory, num_lists=1, temperature=0.0, is_cold=is_cold, seed=0)
        return [self._produced(d, _likeliest_first(d), name) for d in drawn]

    def best_of(
        self,
        directory: Path,
        name: str,
        *,
        num_lists: int,
        temperature: float,
        is_composed: bool,
        seed: int,
    ) -> list[ProducedList]:
        """Returns, of several lists drawn for each question, what the click model likes best first.

        Args:
            directory: of the generator.
            name: of the system.
            num_lists: K.
            temperature: of drawing; lists in beam form are searched for.
            is_composed: put together of all texts that were drawn; else the best drawn list.
            seed: of what is drawn.
        """
        drawn = self._drawn(
            directory, num_lists=num_lists, temperature=temperature, is_cold=False, seed=seed
        )
        worth = judge_lists(self._judge, drawn, level=0.0, relevance_floor=0.0)
        return [
            self._produced(d, self._best(d, w, is_composed, self._confidence), name)
            for d, w in zip(drawn, worth, strict=True)
        ]

    def ceiling(
        self,
        directory: Path,
        name: str,
        attraction: Callable[[Question, list[str]], list[float]],
        *,
        num_lists: int,
        seed: int,
    ) -> list[ProducedList]:
        """Returns the same as `best_of`, by the truth alone, however often texts were drawn.

        Args:
            directory: of the generator.
            name: of the system.
            attraction: a question and texts -> true p(click | seen) of each.
            num_lists: K.
            seed: of what is drawn.
        """
        drawn = self._drawn(
            directory, num_lists=num_lists, temperature=1.0, is_cold=False, seed=seed
        )
        lists: list[ProducedList] = []
        for d in drawn:
            query = d.prompt.query
            texts = list(dict.fromkeys(t for ts in d.texts_KS for seq in ts for t in seq))
            values = attraction(Question(d.prompt.scenario.name, query), texts)
            true = dict(zip(texts, values, strict=True))
            true |= {t: 0.0 for t in texts if key_of(t) == key_of(query)}  # is not listed
            worth = Worth(true, true, dict.fromkeys(texts, True))
            best = self._best(d, worth, is_composed=True, confidence=0)
            lists.append(self._produced(d, best, name))
        return lists

    def _best(self, drawn: Drawn, worth: Worth, is_composed: bool, confidence: float) -> list[str]:
        if is_composed and self._mode != "list":
            return ranked_texts(drawn, worth, confidence)
        seen_P = self._seen.get(drawn.prompt.scenario.name, ())
        return best_drawn(drawn, worth, seen_P, self._num_listed)

    def _drawn(
        self, directory: Path, *, num_lists: int, temperature: float, is_cold: bool, seed: int
    ) -> list[Drawn]:
        model = load_trained(AutoModelForCausalLM, directory)
        if self._mode == "beam":
            temperature = 0.0  # the texts of one wider search: drawn ones repeat
        prompts = self._prompts[is_cold]
        return draw_lists(
            Sampler(model),
            self._vocabulary,
            prompts,
            [seed * 1_000_003 + i for i in range(len(prompts))],
            mode=self._mode,
            num_lists=num_lists,
            temperature=temperature,
        )

    def _produced(self, drawn: Drawn, texts: Sequence[str], name: str) -> ProducedList:
        query = drawn.prompt.query
        kept: dict[str, str] = {}
        for text in texts:
            if key_of(text) != key_of(query):
                kept.setdefault(key_of(text), text)
        return ProducedList(
            scenario=drawn.prompt.scenario.name,
            query=query,
            system=name,
            texts=tuple(kept.values())[: self._num_listed],
            auxiliary_text=drawn.auxiliary_K[0],
        )


def best_drawn(drawn: Drawn, worth: Worth, seen_P: Sequence[float], num_listed: int) -> list[str]:
    """Returns the drawn list whose best `num_listed` texts are worth most, in their order."""

    def values(texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([worth.reward[t] for t in texts])

    query = drawn.prompt.query
    best = max(
        (drawn_texts(drawn, k) for k in range(len(drawn.texts_KS))),
        key=lambda texts: list_reward(values(texts), texts, query, seen_P, num_listed),
    )
    return [best[i] for i in ranking(values(best), best, query)]


def _likeliest_first(drawn: Drawn) -> list[str]:
    """Returns the texts of the first list; those in slots by their probability."""
    order = drawn.logprobs_KS[0].argsort(descending=True, stable=True).tolist()
    return [text for s in order for text in drawn.texts_KS[0][s]]
