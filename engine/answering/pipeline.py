"""A request's way through the engine: plan, look up, generate, merge, score, rank.

What does not fit the time that is left is left out, and the answer says so; a stage that fails
is left out too. Knows nothing of gRPC.
"""

import asyncio
import random

import numpy as np

from engine.answering.answer import Answer, Question
from engine.answering.candidates import (
    NO_TEXTS,
    Candidate,
    WrittenTexts,
    gathered,
    key_of,
    merged,
    set_figures,
)
from engine.answering.dispatch import Dispatcher
from engine.answering.generation import Generation
from engine.answering.lookup import Lookup
from engine.answering.ranking import PRIOR_P_SEEN, ranked, seen_probabilities
from engine.answering.request import RequestState, log_candidates, side_information
from engine.answering.scoring import CandidateInputs
from engine.config import Config
from engine.errors import DeadlineUnreachable, QueueFull
from engine.execution.bundle import Bundle
from engine.execution.models import Floats
from engine.execution.retrieval import Neighbours, Retrieval
from engine.execution.runner import LocalRunner, RemoteModels, RemoteRunner
from engine.execution.runtime import Runtime
from engine.execution.worker import Worker
from engine.feedback.attribution import Source
from engine.formats.blocklist import Blocklist
from engine.formats.prompt import COOCCURRING, SideInformation
from engine.scheduling.deadline import Clock
from engine.scheduling.planner import SCORED_SIZES, score_work
from engine.scheduling.reserve import Reserve
from engine.scheduling.stages import Left, Probe, Stage, Why
from engine.telemetry.metrics import Metrics


class Pipeline:
    """Answers questions with one bundle. To be used from one event loop."""

    def __init__(
        self,
        bundle: Bundle,
        runtime: Runtime,
        config: Config,
        clock: Clock,
        *,
        remote: RemoteModels | None = None,
        neighbours: Neighbours | None = None,
        blocklist: Blocklist | None = None,
        randomness: random.Random | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Puts the parts together; runs nothing yet.

        Args:
            bundle: What answers are made with.
            runtime: Runs the models, or, with `remote`, searches the index.
            config: Settings.
            clock: Time of deadlines.
            remote: The bundle's models on a server, which run in place of the bundle's own.
            neighbours: Finds nearest queries in place of the bundle's own graph.
            blocklist: What no answer may hold.
            randomness: Of exploration.
            metrics: Told of model runs and cache look-ups.
        """
        self.bundle = bundle
        self._config = config
        self._blocklist = blocklist or Blocklist()
        self._random = randomness or random.Random()
        self._retrieval = (
            Retrieval(
                bundle.index,
                max_candidates=config.ranking.max_log_candidates,
                max_cooccurring=bundle.manifest.prompt.max_cooccurring,
                num_nearest=config.ranking.num_nearest,
            )
            if bundle.index
            else None
        )
        self._inputs = CandidateInputs(bundle.vocabulary, bundle.statistics)
        searched = self._retrieval if neighbours is None else None
        if remote is None:
            runner = LocalRunner(
                bundle, searched, runtime, clock, max_batch_size=config.models.max_batch_size
            )
        else:
            runner = RemoteRunner(
                remote, searched, runtime, clock, concurrency=config.triton.concurrency
            )
        self.worker = Worker(runner, config, clock, metrics)
        self._dispatcher = Dispatcher(
            self.worker, clock, has_click_model=bundle.manifest.click_model is not None
        )
        self._lookup = Lookup(bundle, self._retrieval, self._dispatcher, neighbours)
        self._generation = Generation(bundle, self._dispatcher)
        self._reserve = Reserve(config.server.reserve_ms / 1000, clock)

    async def recommend(self, question: Question, probe: Probe) -> Answer:
        """Returns an answer before the question's deadline.

        Raises:
            DeadlineUnreachable: the deadline has passed.
            QueueFull: too many rows wait for a model, and the log has nothing to answer with.
        """
        if question.deadline.has_passed:
            raise DeadlineUnreachable
        request = RequestState(question, probe, self._reserve.of(question.deadline.left_s()))
        with self._dispatcher.attending(request):
            answer = await self._answered(request)
        if request.ready_s is not None:
            asyncio.get_running_loop().call_soon(self._reserve.ended, request.ready_s)
        return answer

    async def close(self) -> None:
        """Ends connections, and lets go of models and index once nothing runs on them."""
        await self.worker.close()
        await self._lookup.close()

    async def _answered(self, request: RequestState) -> Answer:
        question, probe = request.question, request.probe
        rungs = self._generation.rungs(question)
        retrieved = await self._lookup.retrieved(request, rungs)
        side = side_information(question)
        log = log_candidates(retrieved)
        if rungs:
            cooccurring = [SideInformation(COOCCURRING, t) for t in retrieved.cooccurring[::-1]]
            texts, candidates, context_ids = await self._written(request, cooccurring, side, log)
        else:
            request.omit(Stage.GENERATE, Left.SKIPPED, Why.NOT_IN_BUNDLE)
            texts = NO_TEXTS
            candidates = self._candidates(request, texts, log)
            context_ids = self._prepared(question, side, log, probe)
        with probe.during(Stage.MERGE):
            if question.scenario.completes_prefix:
                candidates += self._longer(question, candidates)
            lead = texts.auxiliary
            auxiliary = lead.text if lead and not self._blocklist.blocks(lead.text) else ""
        if not candidates and request.is_turned_away:
            raise QueueFull("recommend")
        p_seen_C, is_scored = await self._score(request, candidates, context_ids)
        with probe.during(Stage.RERANK):
            goes_by_likelihood = (
                question.scenario.completes_prefix and self._generation.tells_probabilities
            )
            suggestions = ranked(
                question,
                candidates,
                p_seen_C,
                is_scored=is_scored,
                is_best_first=self._generation.is_best_first,
                num_searches=(
                    self._lookup.num_searches(question.query) if goes_by_likelihood else None
                ),
                config=self._config.ranking,
                randomness=self._random,
            )
        return Answer(
            suggestions=suggestions,
            auxiliary_text=auxiliary,
            omissions=request.in_stage_order(),
            is_public=self._lookup.is_public(question),
        )

    async def _written(
        self,
        request: RequestState,
        cooccurring: list[SideInformation],
        side: list[SideInformation],
        log: list[Candidate],
    ) -> tuple[WrittenTexts, list[Candidate], list[int]]:
        """Returns what the generator writes, all candidates, and the click model's context."""
        question = request.question
        prompt = self._generation.prompt(request, question.query, [*cooccurring, *side])

        async def prepared() -> list[int]:
            """Makes what scoring will need while the generator runs, not after it."""
            await asyncio.sleep(0)  # the row that is submitted meanwhile begins, if it can
            return self._prepared(question, side, log, request.probe)

        preparation = asyncio.ensure_future(prepared())
        try:
            sequences = await self._generation.sequences(request, prompt)
            context_ids = await preparation
        finally:
            preparation.cancel()
        texts = self._generation.texts(request, prompt, sequences)
        candidates = self._candidates(request, texts, log)
        if prompt.healed and sequences and len(candidates) < question.num_suggestions:
            more = await self._generation.more_sequences(request, prompt, sequences)
            texts = self._generation.texts(request, prompt, more)
            candidates = self._candidates(request, texts, log)
            if len(candidates) < question.num_suggestions and not question.query.endswith(" "):
                further = await self._generation.next_words(request, [*cooccurring, *side])
                texts = texts.joined(further)
                candidates = self._candidates(request, texts, log)
        return texts, candidates, context_ids

    def _prepared(
        self,
        question: Question,
        side: list[SideInformation],
        log: list[Candidate],
        probe: Probe,
    ) -> list[int]:
        """Returns the click model's context, and readies the log's candidates for it."""
        if self.bundle.manifest.click_model is None:
            return []
        with probe.during(Stage.TOKENISE):
            self._inputs.attach(question.scenario, question.query, log)
            return self.bundle.renderer.click_context(question.scenario.name, question.query, side)

    async def _score(
        self, request: RequestState, candidates: list[Candidate], context_ids: list[int]
    ) -> tuple[Floats, bool]:
        """Returns p(click | seen) of the first candidates, and whether a model gave them."""
        question, bundle = request.question, self.bundle
        prior_C = np.full(len(candidates), PRIOR_P_SEEN, np.float32)
        spec = bundle.manifest.click_model
        if spec is None:
            request.omit(Stage.SCORE, Left.SKIPPED, Why.NOT_IN_BUNDLE)
            return prior_C, False
        if not candidates:
            return prior_C, False
        plan = self._dispatcher.plan(
            request, encode=False, rungs=(), num_candidates=len(candidates)
        )
        request.adopt(plan, Stage.SCORE)
        if plan.num_scored == 0:
            return prior_C, False
        scored = candidates[: plan.num_scored]
        with request.probe.during(Stage.TOKENISE):
            row = self._inputs.row(question.scenario, question.query, context_ids, scored)
        done = await self._dispatcher.submit(request, score_work(len(scored)), row, later_s=0.0)
        if done is None:
            return prior_C, False
        request.probe.add(Stage.SCORE, done.run_s)
        is_known_C = np.array([c.popularity > 0 for c in scored])
        return seen_probabilities(spec, question.scenario.name, done.result, is_known_C), True

    def _candidates(
        self, request: RequestState, texts: WrittenTexts, log: list[Candidate]
    ) -> list[Candidate]:
        """Returns what may be suggested, in the order of the prior."""
        question = request.question
        with request.probe.during(Stage.MERGE):
            candidates = gathered(
                texts,
                log,
                excluded_keys=question.excluded_keys | {key_of(question.query)},
                is_blocked=self._blocklist.blocks,
                num_wanted=question.num_suggestions,
                limit=SCORED_SIZES[0],
            )
            if self._retrieval is not None:
                set_figures(question.query, candidates, self._retrieval)
            return candidates

    def _longer(self, question: Question, candidates: list[Candidate]) -> list[Candidate]:
        """Returns completions of the completions found, where these are fewer than asked for."""
        missing = question.num_suggestions - len(candidates)
        if missing <= 0 or self._retrieval is None:
            return []
        texts = [t for c in candidates for t in self._retrieval.by_suffix(c.text, missing)]
        excluded = question.excluded_keys | {key_of(question.query)}
        longer = merged(
            (),
            [Candidate(t, key_of(t), Source.LOG) for t in texts],
            excluded_keys=excluded | {c.key for c in candidates},
            is_blocked=self._blocklist.blocks,
            limit=missing,
        )
        set_figures(question.query, longer, self._retrieval)
        return longer
