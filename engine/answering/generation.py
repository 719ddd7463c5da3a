"""What the generator writes for a request, and what more of it a completion may need.

Slots may agree on a rare prefix. Then the prefix is generated for again, so that texts begin with
other tokens, and once more as if a space had been typed. Knows nothing of candidates from the log.
"""

import asyncio
from collections.abc import Sequence

from engine.answering.answer import Question
from engine.answering.candidates import WrittenTexts, written_texts
from engine.answering.dispatch import Dispatcher
from engine.answering.request import RequestState
from engine.execution.bundle import Bundle
from engine.execution.models import GenerateRow, Sequences
from engine.formats.completion import other_ranges
from engine.formats.prompt import Prompt, SideInformation
from engine.scheduling.planner import SCORED_SIZES, Rung, score_work
from engine.scheduling.stages import Left, Stage, Why

_MAX_OTHER_RANGES = 2  # further rows of a completion whose slots agree


class Generation:
    """Writes texts with the generator of one bundle.

    Attributes:
        is_best_first: Whether it writes its most probable text first.
        tells_probabilities: Whether it says how probable each text is; true of no generator, too.
    """

    def __init__(self, bundle: Bundle, dispatcher: Dispatcher) -> None:
        """Remembers the parts."""
        self._bundle = bundle
        self._dispatcher = dispatcher
        self._worker = dispatcher.worker
        generator = bundle.manifest.generator
        self._is_list = generator is not None and generator.mode == "list"
        self.is_best_first = generator is not None and generator.mode == "beam"
        self.tells_probabilities = generator is None or "logprobs" in generator.outputs

    def rungs(self, question: Question) -> tuple[Rung, ...]:
        """Returns the amounts of generation that the question's scenario may get, best first."""
        return self._bundle.rungs[question.scenario.name]

    def prompt(self, request: RequestState, query: str, side: Sequence[SideInformation]) -> Prompt:
        """Returns the prompt for a query of the request's scenario."""
        with request.probe.during(Stage.TOKENISE):
            scenario = request.question.scenario.name
            return self._bundle.renderer.generation_prompt(scenario, query, side)

    async def sequences(self, request: RequestState, prompt: Prompt) -> Sequences | None:
        """Returns what was generated, or None with an omission."""
        rungs = self.rungs(request.question)
        plan = self._dispatcher.plan(request, encode=False, rungs=rungs)
        later_s = self._score_s() if plan.num_scored else 0.0
        finish_by_s = request.deadline.at_s - later_s
        best = GenerateRow(prompt.ids, prompt.first_token_range, rungs[0])
        for rung in rungs:  # best first: what costs nothing may be more than is planned
            row = best._replace(rung=rung)
            cached = self._worker.cached(row)
            is_planned = rung == plan.rung
            if not (cached or is_planned or self._worker.is_under_way(row, finish_by_s)):
                continue
            if rung == rungs[0]:
                if cached is not None and not request.has_omitted(Stage.GENERATE):
                    request.omit(Stage.GENERATE, Left.SKIPPED, Why.CACHED)
            else:  # less than was wanted, for the reason that the plan gives
                why = next(o.reason for o in plan.omissions if o.stage is Stage.GENERATE)
                request.omit(Stage.GENERATE, Left.DEGRADED, why)
            return cached or await self._generated(request, row, later_s)
        request.adopt(plan, Stage.GENERATE)
        return None

    async def more_sequences(
        self, request: RequestState, prompt: Prompt, sequences: Sequences
    ) -> Sequences:
        """Returns more completions if time allows: ones that begin with other tokens.

        The parts of the range of first tokens that no slot chose give texts that differ by
        construction.
        """
        plan = self._dispatcher.plan(request, encode=False, rungs=self.rungs(request.question))
        used = [ids[0] for ids in sequences.ids if ids]
        if plan.rung is None or self._is_list:
            return sequences
        rows = [
            GenerateRow(prompt.ids, part, plan.rung)
            for part in other_ranges(prompt.first_token_range, used, _MAX_OTHER_RANGES)
        ]
        found, run_s = [self._worker.cached(row) for row in rows], 0.0
        missing = [i for i, known in enumerate(found) if known is None]
        work, later_s = plan.rung.work, self._score_s()
        tasks = [self._dispatcher.submit(request, work, rows[i], later_s=later_s) for i in missing]
        for i, outcome in zip(missing, await asyncio.gather(*tasks), strict=True):
            if outcome is not None:
                found[i], run_s = outcome.result, max(run_s, outcome.run_s)
        ids, is_finished = list(sequences.ids), list(sequences.is_finished)
        logprobs = sequences.logprobs
        for other in found:
            if other is not None:
                ids += other.ids
                is_finished += other.is_finished
        request.keep_partial(Stage.GENERATE)
        request.probe.add(Stage.GENERATE, run_s)
        if logprobs is not None:  # those of other ranges are not to be compared
            logprobs = [*logprobs, *[None] * (len(ids) - len(logprobs))]
        return Sequences(ids, is_finished, logprobs)

    async def next_words(
        self, request: RequestState, side: Sequence[SideInformation]
    ) -> WrittenTexts:
        """Returns completions as if a space had been typed, too: the prefix may be a whole word."""
        prompt = self.prompt(request, request.question.query + " ", side)
        sequences = await self.sequences(request, prompt)
        if sequences is not None:
            sequences = await self.more_sequences(request, prompt, sequences)
        request.keep_partial(Stage.GENERATE)
        return self.texts(request, prompt, sequences)

    def texts(
        self, request: RequestState, prompt: Prompt, sequences: Sequences | None
    ) -> WrittenTexts:
        """Returns the texts that sequences stand for."""
        with request.probe.during(Stage.MERGE):
            return written_texts(
                self._bundle.vocabulary,
                sequences,
                is_list=self._is_list,
                has_auxiliary_text=request.question.scenario.has_auxiliary_text,
                healed=prompt.healed,
            )

    async def _generated(
        self, request: RequestState, row: GenerateRow, later_s: float
    ) -> Sequences | None:
        done = await self._dispatcher.submit(request, row.rung.work, row, later_s=later_s)
        if done is None:
            return None
        request.probe.add(Stage.GENERATE, done.run_s)
        return done.result

    def _score_s(self) -> float:
        """Returns the time to keep for scoring."""
        return self._worker.models.costs.predict_s(score_work(SCORED_SIZES[0]), 1)
