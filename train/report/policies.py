"""Lists that a generator writes for questions, without candidates of the log and without reranking.

Prompts and look-ups are those of a served bundle; the weights may be any of its run. Knows nothing
of how lists are compared.
"""

# K lists of a question, S sequences of a list
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from engine.answering.candidates import key_of
from engine.formats.prompt import COOCCURRING, SideInformation
from train.alignment.preferences import drawn_texts, ranked_texts, searched_texts
from train.alignment.prompts import AlignmentPrompt, render
from train.alignment.reward import list_reward, ranking
from train.alignment.rollouts import Drawn, Worth, draw_lists, judge_lists
from train.clicks.calibration import read_examination
from train.clicks.judge import ClickJudge
from train.evaluation.lists import ListTruth, ProducedList
from train.evaluation.served import Asked, ServedBundle
from train.generation.generator import read_prompts
from train.generation.sampler import Sampler
from train.models.trained import load_trained
from train.report.ceiling import Pool, best_lists


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
        self.mode, self._num_listed = generator.mode, num_listed
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
                self._prompts[is_cold].append(render(prompts, self.mode, *question, side))

    def greedy(self, directory: Path, name: str, *, is_cold: bool) -> list[ProducedList]:
        """Returns the list that would be served for each question, likeliest text first.

        Args:
            directory: of the generator.
            name: of the system.
            is_cold: without co-occurring queries in the prompt.
        """
        drawn = self._drawn(directory, num_lists=1, temperature=0.0, is_cold=is_cold, seed=0)
        return [self._produced(d, _likeliest_first(d), name) for d in drawn]

    def best_drawn(
        self, directory: Path, name: str, *, num_lists: int, temperature: float, seed: int
    ) -> list[ProducedList]:
        """Returns, of several lists drawn for each question, the one that the click model likes.

        Args:
            directory: of the generator.
            name: of the system.
            num_lists: K.
            temperature: of drawing.
            seed: of what is drawn.

        Raises:
            ValueError: lists are in beam form: one search writes no lists to choose from.
        """
        if self.mode == "beam":
            raise ValueError("in beam form one search writes texts and no lists to choose from")
        made: list[ProducedList] = []
        for drawn, worth in self._judged(directory, num_lists, temperature, seed):
            seen_P = self._seen.get(drawn.prompt.scenario.name, ())
            best = best_drawn(drawn, worth, seen_P, self._num_listed)
            made.append(self._produced(drawn, best, name))
        return made

    def composed(
        self, directory: Path, name: str, *, num_lists: int, temperature: float, seed: int
    ) -> list[ProducedList]:
        """Returns what the click model likes best first, of all texts of several lists.

        Args:
            directory: of the generator.
            name: of the system.
            num_lists: K; in beam form, texts are those of a search K times as wide.
            temperature: of drawing; lists in beam form are searched for.
            seed: of what is drawn.

        Raises:
            ValueError: lists are in list form, whose texts are written after one another.
        """
        if self.mode == "list":
            raise ValueError("texts in list form were written for the list that they are in")
        made: list[ProducedList] = []
        for drawn, worth in self._judged(directory, num_lists, temperature, seed):
            texts = (
                [text for text, _ in searched_texts(drawn, worth, self._confidence)]
                if self.mode == "beam"
                else ranked_texts(drawn, worth, self._confidence)
            )
            made.append(self._produced(drawn, texts, name))
        return made

    def ceiling(
        self, directory: Path, name: str, truth: ListTruth, *, num_lists: int, seed: int
    ) -> list[ProducedList]:
        """Returns the best lists by the truth that all texts of several lists can be put into.

        Args:
            directory: of the generator.
            name: of the system.
            truth: see `train.report.ceiling`.
            num_lists: K; in beam form, texts are those of a search K times as wide.
            seed: of what is drawn.
        """
        drawn = self._drawn(
            directory, num_lists=num_lists, temperature=1.0, is_cold=False, seed=seed
        )
        pools: list[Pool] = []
        for d in drawn:
            every = (t for k in range(num_lists) for t in drawn_texts(d, k))
            texts = _listable(every, d.prompt.query)
            pools.append(Pool(d.prompt.scenario.name, d.prompt.query, texts, d.auxiliary_K[0]))
        best = best_lists(truth, pools, self._num_listed)
        return [self._produced(d, texts, name) for d, texts in zip(drawn, best, strict=True)]

    def _judged(
        self, directory: Path, num_lists: int, temperature: float, seed: int
    ) -> Iterator[tuple[Drawn, Worth]]:
        """Returns lists drawn for each question with what the click model says of their texts."""
        drawn = self._drawn(
            directory, num_lists=num_lists, temperature=temperature, is_cold=False, seed=seed
        )
        worth = judge_lists(self._judge, drawn, level=0.0, relevance_floor=0.0)
        return zip(drawn, worth, strict=True)

    def _drawn(
        self, directory: Path, *, num_lists: int, temperature: float, is_cold: bool, seed: int
    ) -> list[Drawn]:
        model = load_trained(AutoModelForCausalLM, directory)
        if self.mode == "beam":
            temperature = 0.0  # the texts of one wider search: drawn ones repeat
        prompts = self._prompts[is_cold]
        return draw_lists(
            Sampler(model),
            self._vocabulary,
            prompts,
            [seed * 1_000_003 + i for i in range(len(prompts))],
            mode=self.mode,
            num_lists=num_lists,
            temperature=temperature,
        )

    def _produced(self, drawn: Drawn, texts: Sequence[str], name: str) -> ProducedList:
        query = drawn.prompt.query
        return ProducedList(
            scenario=drawn.prompt.scenario.name,
            query=query,
            system=name,
            texts=tuple(_listable(texts, query))[: self._num_listed],
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


def _listable(texts: Iterable[str], query: str) -> list[str]:
    """Returns the texts that say something else than the query and those before."""
    kept: dict[str, str] = {}
    for text in texts:
        if key_of(text) != key_of(query):
            kept.setdefault(key_of(text), text)
    return list(kept.values())
