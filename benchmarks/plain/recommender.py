"""Answers a batch of questions: look up, write, merge, score, rank. Knows nothing of gRPC.

Prompts, features, merging and ranking are the engine's own functions: what is compared is how
models are run and served, not what they are asked.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.plain.models import Models, Setting, threads
from engine.answering.answer import Answer, Question
from engine.answering.candidates import (
    Candidate,
    WrittenTexts,
    gathered,
    key_of,
    set_figures,
    written_texts,
)
from engine.answering.ranking import ranked, seen_probabilities
from engine.answering.request import log_candidates, side_information
from engine.answering.scoring import CandidateInputs
from engine.config import RankingConfig
from engine.execution.models import GenerateRow, ScoreRow, Sequences
from engine.execution.retrieval import Retrieval, Retrieved
from engine.formats.index import CooccurrenceIndex
from engine.formats.manifest import ClickModelSpec
from engine.formats.prompt import COOCCURRING, SideInformation
from engine.formats.token_statistics import TOKEN_STATISTICS, TokenStatistics
from engine.scheduling.planner import SCORED_SIZES, Rung
from export.checkpoint import Run
from export.requests import decoding


class Written(NamedTuple):
    """What is known of a question before its candidates are scored."""

    retrieved: Retrieved
    row: GenerateRow
    sequences: Sequences
    texts: WrittenTexts


class Recommender:
    """One run's models and index. To be used from one thread."""

    def __init__(self, run: Run, setting: Setting) -> None:
        """Loads them.

        Raises:
            ValueError: the run lacks a part.
        """
        if not run.has("index"):
            raise ValueError(f"{run.directory}: has no index; the plain stack needs one")
        self.setting = setting
        self.scenarios = {s.name: s for s in run.scenarios}
        self._models = Models(run, setting.precision)
        self._vocabulary, self._renderer = run.vocabulary, run.renderer
        self._ranking = RankingConfig()
        self._retrieval = Retrieval(
            CooccurrenceIndex(run.directory / "index", run.index_spec()),
            max_candidates=self._ranking.max_log_candidates,
            max_cooccurring=run.prompt.max_cooccurring,
            num_nearest=self._ranking.num_nearest,
        )
        self._inputs = CandidateInputs(
            run.vocabulary,
            TokenStatistics.load(run.directory / "click_model" / TOKEN_STATISTICS),
        )
        self._is_best_first = run.taught_mode() == "beam"
        self._rungs: dict[str, Rung] = {}
        for name in self.scenarios:
            how = decoding(run, name, run.taught_mode())
            self._rungs[name] = Rung(tuple(how.slots), tuple(how.max_new_tokens))
        self._click_model = _click_model(run)
        self._random = random.Random(0)

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Returns an answer to each question, in order."""
        with threads(self.setting.num_threads):
            return self._ranked(questions, self.written(questions))

    def written(self, questions: Sequence[Question]) -> list[Written]:
        """Returns what the log and the generator have for each question."""
        retrieved = self._retrieve(questions)
        prompts = [
            self._renderer.generation_prompt(
                q.scenario.name,
                q.query,
                [SideInformation(COOCCURRING, t) for t in r.cooccurring[::-1]]
                + side_information(q),
            )
            for q, r in zip(questions, retrieved, strict=True)
        ]
        rows = [
            GenerateRow(p.ids, p.first_token_range, self._rungs[q.scenario.name])
            for q, p in zip(questions, prompts, strict=True)
        ]
        sequences = self._models.write(rows)
        texts = [
            written_texts(
                self._vocabulary,
                s,
                is_list=False,
                has_auxiliary_text=q.scenario.has_auxiliary_text,
                healed=p.healed,
            )
            for q, p, s in zip(questions, prompts, sequences, strict=True)
        ]
        return [Written(*parts) for parts in zip(retrieved, rows, sequences, texts, strict=True)]

    def _retrieve(self, questions: Sequence[Question]) -> list[Retrieved]:
        found = [
            self._retrieval.completions(q.query, q.session_queries)
            if q.scenario.completes_prefix
            else self._retrieval.exact(q.query)
            for q in questions
        ]
        unknown = [q.query for q, f in zip(questions, found, strict=True) if f is None]
        embeddings = iter(self._models.embed(unknown) if unknown else ())
        return [
            self._retrieval.nearby(q.query, next(embeddings)) if f is None else f
            for q, f in zip(questions, found, strict=True)
        ]

    def _ranked(self, questions: Sequence[Question], written: Sequence[Written]) -> list[Answer]:
        candidates = [self._candidates(q, w) for q, w in zip(questions, written, strict=True)]
        scored = [i for i, found in enumerate(candidates) if found]
        rows = [self._score_row(questions[i], candidates[i]) for i in scored]
        logits = dict(zip(scored, self._models.score(rows) if rows else (), strict=True))
        answers: list[Answer] = []
        for i, question in enumerate(questions):
            is_known_C = np.array([c.popularity > 0 for c in candidates[i]])
            p_seen_C = np.empty(0, np.float32)
            if i in logits:
                p_seen_C = seen_probabilities(
                    self._click_model, question.scenario.name, logits[i], is_known_C
                )
            suggestions = ranked(
                question,
                candidates[i],
                p_seen_C,
                is_scored=i in logits,
                is_best_first=self._is_best_first,
                num_searches=self._num_searches(question),
                config=self._ranking,
                randomness=self._random,
            )
            lead = written[i].texts.auxiliary
            answers.append(
                Answer(
                    suggestions=suggestions, auxiliary_text=lead.text if lead else "", omissions=()
                )
            )
        return answers

    def _num_searches(self, question: Question) -> float | None:
        """Returns what an engine counts for a bundle exported from the run by this release."""
        if not (question.scenario.completes_prefix and self._is_best_first):
            return None
        return self._retrieval.index.num_searches(question.query)

    def _candidates(self, question: Question, written: Written) -> list[Candidate]:
        """Returns what may be suggested; texts that were cut only where there are too few."""
        candidates = gathered(
            written.texts,
            log_candidates(written.retrieved),
            excluded_keys=question.excluded_keys | {key_of(question.query)},
            is_blocked=lambda _: False,
            num_wanted=question.num_suggestions,
            limit=SCORED_SIZES[0],
        )
        set_figures(question.query, candidates, self._retrieval)
        return candidates

    def _score_row(self, question: Question, candidates: Sequence[Candidate]) -> ScoreRow:
        context_ids = self._renderer.click_context(
            question.scenario.name, question.query, side_information(question)
        )
        return self._inputs.row(question.scenario, question.query, context_ids, candidates)


def _click_model(run: Run) -> ClickModelSpec:
    """Returns the calibration of a run's click model."""
    return ClickModelSpec(
        file="click_model",
        precision="fp32",
        inputs={},
        outputs={},
        feature_names=[],
        calibration=run.calibration(),
        unknown_calibration=run.unknown_calibration(),
    )
