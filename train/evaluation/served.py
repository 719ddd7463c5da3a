"""A bundle that answers in this process: the engine's own code, with all the time it wants.

Answers are those that an engine would give over gRPC with a long deadline. Knows nothing of what
answers are compared with.
"""

# B texts, C candidates, D dim
import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.answering.answer import Answer, Question
from engine.answering.candidates import (
    Candidate,
    WrittenTexts,
    key_of,
    merged,
    written_texts,
)
from engine.answering.pipeline import Pipeline
from engine.answering.ranking import seen_probabilities
from engine.answering.request import side_information
from engine.answering.scoring import CandidateInputs
from engine.config import Config
from engine.execution.bundle import load_bundle
from engine.execution.cpu import num_usable_cpus
from engine.execution.models import GenerateRow
from engine.execution.retrieval import NOTHING, Retrieval, Retrieved
from engine.execution.runtime import Runtime
from engine.feedback.attribution import Source
from engine.formats.manifest import MAX_CANDIDATE_TOKENS, ScenarioSpec
from engine.formats.prompt import COOCCURRING, Prompt, SideInformation
from engine.formats.token_statistics import FIGURES
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.planner import SCORED_SIZES
from engine.scheduling.stages import Probe

_PATIENCE_S = 600.0
_AT_ONCE = 16  # questions on their way
_MAX_ROWS = 8  # of a model run
Floats = NDArray[np.float32]
T = TypeVar("T")


class LeftOut(ValueError):
    """A bundle or a log has nothing that a figure could be measured on; the message says why."""


class Asked(NamedTuple):
    """A question; texts are normalised."""

    query: str
    session_queries: tuple[str, ...] = ()  # oldest first
    answer: str = ""  # the assistant's
    side_information: tuple[SideInformation, ...] = ()  # other, most important first


class ServedBundle:
    """A loaded bundle. To be used from one thread, outside any event loop."""

    def __init__(self, directory: Path, *, num_threads: int = 0) -> None:
        """Loads and verifies the bundle.

        Args:
            directory: where it is.
            num_threads: of each model; 0: as many as the process may use.

        Raises:
            BundleError: the bundle cannot be used.
        """
        config = Config()
        self._clock = MonotonicClock()
        # Sessions of others in this process may have pools of their own.
        self._runtime = Runtime(
            num_threads=num_threads or num_usable_cpus(), shared_thread_pool=False
        )
        self.bundle = load_bundle(directory, self._runtime)
        self._pipeline = Pipeline(self.bundle, self._runtime, config, self._clock)
        self._loop = asyncio.Runner()
        self._inputs = CandidateInputs(self.bundle.vocabulary, self.bundle.statistics)
        spec, ranking = self.bundle.manifest.prompt, config.ranking
        self.retrieval = (
            Retrieval(
                self.bundle.index,
                max_candidates=ranking.max_log_candidates,
                max_cooccurring=spec.max_cooccurring,
                num_nearest=ranking.num_nearest,
            )
            if self.bundle.index
            else None
        )

    def close(self) -> None:
        """Ends the threads."""
        self._loop.close()
        self._runtime.close()

    def scenario(self, name: str) -> ScenarioSpec:
        """Returns a scenario of the bundle.

        Raises:
            ValueError: the bundle lacks it.
        """
        spec = self.bundle.scenarios.get(name)
        if spec is None:
            known = ", ".join(self.bundle.scenarios)
            raise ValueError(f"the bundle has no scenario {name!r}; it has {known}")
        return spec

    def first_scenario(self, *, completes_prefix: bool) -> str:
        """Returns the first scenario that completes prefixes, or that suggests queries alone.

        Raises:
            LeftOut: the bundle has none.
        """
        for name, spec in self.bundle.scenarios.items():
            if spec.completes_prefix == completes_prefix and not spec.has_auxiliary_text:
                return name
        raise LeftOut(
            "the bundle completes nothing"
            if completes_prefix
            else "every scenario of the bundle completes prefixes or has an auxiliary text"
        )

    def answers(self, scenario: str, questions: Sequence[Asked], num: int) -> list[Answer]:
        """Returns up to `num` suggestions for each question, best first.

        Raises:
            ValueError: the bundle lacks the scenario, or a stage failed.
        """
        self.scenario(scenario)

        async def one(asked: Asked) -> Answer:
            question = self._question(scenario, asked, num)
            return await self._pipeline.recommend(question, Probe(self._clock))

        async def together(part: Sequence[Asked]) -> list[Answer]:
            return await asyncio.gather(*map(one, part))

        answers: list[Answer] = []
        for part in _parts(questions, _AT_ONCE):
            for answer in self._loop.run(together(part)):
                for omission in answer.omissions:
                    if not omission.is_harmless:
                        raise ValueError(
                            f"{omission.stage} was left out ({omission.reason.name.lower()}): "
                            "figures would not be those of the bundle; see the log"
                        )
                answers.append(answer)
        return answers

    def texts(self, scenario: str, questions: Sequence[Asked], num: int) -> list[list[str]]:
        """Returns the texts of `answers`."""
        answers = self.answers(scenario, questions, num)
        return [[s.text for s in answer.suggestions] for answer in answers]

    def written(self, scenario: str, questions: Sequence[Asked]) -> list[WrittenTexts]:
        """Returns what the generator alone writes for each question, repeats included, by slot.

        Its prompt has co-occurring queries as when serving.

        Raises:
            ValueError: the bundle lacks the scenario or a generator.
        """
        spec = self.scenario(scenario)
        bundle = self.bundle
        if bundle.generator is None or bundle.manifest.generator is None:
            raise ValueError("the bundle has no generator")
        is_list = bundle.manifest.generator.mode == "list"
        texts: list[WrittenTexts] = []
        for part in _parts(questions, _MAX_ROWS):
            prompts = self.prompts(scenario, part)
            rung = bundle.rungs[scenario][0]
            rows = [GenerateRow(p.ids, p.first_token_range, rung) for p in prompts]
            texts += [
                written_texts(
                    bundle.vocabulary,
                    sequences,
                    is_list=is_list,
                    has_auxiliary_text=spec.has_auxiliary_text,
                    healed=prompt.healed,
                )
                for sequences, prompt in zip(bundle.generator.run(rows), prompts, strict=True)
            ]
        return texts

    def prompts(self, scenario: str, questions: Sequence[Asked]) -> list[Prompt]:
        """Returns what the generator reads for each question, co-occurring queries included."""
        return [
            self.bundle.renderer.generation_prompt(
                scenario,
                asked.query,
                [
                    *(SideInformation(COOCCURRING, t) for t in found.cooccurring[::-1]),
                    *side_information(self._question(scenario, asked)),
                ],
            )
            for asked, found in zip(questions, self.retrieved(scenario, questions), strict=True)
        ]

    def retrieved(self, scenario: str, questions: Sequence[Asked]) -> list[Retrieved]:
        """Returns known queries that fit each question: what the engine takes from the index."""
        retrieval, found = self.retrieval, [NOTHING] * len(questions)
        if retrieval is None:
            return found
        if self.bundle.scenarios[scenario].completes_prefix:
            return [retrieval.completions(a.query, a.session_queries) for a in questions]
        exact = [retrieval.exact(a.query) for a in questions]
        unknown = [a.query for a, e in zip(questions, exact, strict=True) if e is None]
        near = iter(self.embeddings(unknown))
        return [
            retrieval.nearby(a.query, next(near)) if e is None else e
            for a, e in zip(questions, exact, strict=True)
        ]

    def embeddings(self, texts: Sequence[str]) -> list[Floats | None]:
        """Returns the unit vector (D) of each text, or None without an encoder."""
        encoder = self.bundle.encoder
        if encoder is None:
            return [None] * len(texts)
        ids = [self.bundle.encoder_ids(t) for t in texts]
        return [row_D for part in _parts(ids, 64) for row_D in encoder.run(part)]

    def click_probabilities(self, scenario: str, asked: Asked, texts: Sequence[str]) -> Floats:
        """Returns the click model's p(click | seen) of each text, float32 (C).

        Raises:
            ValueError: the bundle has no click model.
        """
        model, spec = self.bundle.click_model, self.bundle.manifest.click_model
        if model is None or spec is None:
            raise ValueError("the bundle has no click model")
        side = side_information(self._question(scenario, asked))
        known = self.retrieval.known(asked.query, texts) if self.retrieval else None
        popularity, npmi = known or ([0.0] * len(texts), [0.0] * len(texts))
        context_ids = self.bundle.renderer.click_context(scenario, asked.query, side)
        candidates = [
            Candidate(text, key_of(text), Source.LOG, count, association)
            for text, count, association in zip(texts, popularity, npmi, strict=True)
        ]
        parts: list[Floats] = []
        for part in _parts(candidates, SCORED_SIZES[0]):
            row = self._inputs.row(self.bundle.scenarios[scenario], asked.query, context_ids, part)
            logits_C = model.run([row], SCORED_SIZES[0])[0][: len(part)]
            is_known_C = np.array([c.popularity > 0 for c in part])
            parts.append(seen_probabilities(spec, scenario, logits_C, is_known_C))
        return np.concatenate(parts)

    def figures(self, query: str, texts: Sequence[str]) -> Floats:
        """Returns what the log's tokens say of each text, float32 (C, len(FIGURES)).

        Zeros for a bundle without a click model.
        """
        statistics, ids_of = self.bundle.statistics, self.bundle.vocabulary.ids_of
        if statistics is None:
            return np.zeros((len(texts), len(FIGURES)), np.float32)
        return statistics.figures(ids_of(query), [ids_of(t)[:MAX_CANDIDATE_TOKENS] for t in texts])

    def _question(self, scenario: str, asked: Asked, num: int = 1) -> Question:
        return Question(
            scenario=self.bundle.scenarios[scenario],
            query=asked.query,
            session_queries=asked.session_queries,
            answer=asked.answer,
            side_information=asked.side_information,
            num_suggestions=num,
            deadline=Deadline.after(_PATIENCE_S, self._clock),
        )


def distinct_texts(query: str, written: WrittenTexts, limit: int) -> list[str]:
    """Returns up to `limit` texts that differ from one another and the query, as written."""
    candidates = merged(
        [*written.finished, *written.cut],
        (),
        excluded_keys=frozenset({key_of(query)}),
        is_blocked=lambda _: False,
        limit=limit,
    )
    return [candidate.text for candidate in candidates]


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
