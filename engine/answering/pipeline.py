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
from engine.answering.ranking import PRIOR_P_SEEN, ranked, seen_probabilities
from engine.answering.request import RequestState, log_candidates, side_information
from engine.answering.safety import Blocklist
from engine.answering.scoring import CandidateInputs
from engine.config import Config
from engine.errors import DeadlineUnreachable, EngineError, QueueFull
from engine.execution.bundle import Bundle
from engine.execution.models import Floats
from engine.execution.retrieval import NOTHING, Neighbours, Retrieval, Retrieved
from engine.execution.runner import Found, LocalRunner, LookupRow, RemoteModels, RemoteRunner
from engine.execution.runtime import Runtime
from engine.execution.worker import Worker
from engine.feedback.attribution import Source
from engine.formats.graph import Rows
from engine.formats.prompt import COOCCURRING, SideInformation
from engine.scheduling.batcher import TooLate
from engine.scheduling.deadline import Clock
from engine.scheduling.planner import ENCODE, SCORED_SIZES, Plan, score_work, works_of
from engine.scheduling.reserve import Reserve
from engine.scheduling.stages import Left, Probe, Stage, Why
from engine.telemetry.metrics import Metrics

# Turns of the event loop until a row just submitted is running, if the worker is free.
_TURNS_TO_START = 3
_LEAST_SEARCH_SHARE = 0.2  # of the time left, for a search on a server


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
        self._neighbours = neighbours
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
        self._generation = Generation(bundle, self._dispatcher)
        self._reserve = Reserve(config.server.reserve_ms / 1000, clock)

    async def recommend(self, question: Question, probe: Probe) -> Answer:
        """Returns an answer before the question's deadline.

        Raises:
            DeadlineUnreachable: the deadline has passed.
            QueueFull: too many rows wait for a model, and the log has nothing to answer with.
        """
        if question.deadline.has_passed:
            raise DeadlineUnreachable(question.deadline.left_s())
        request = RequestState(question, probe, self._reserve.of(question.deadline.left_s()))
        with self._dispatcher.attending(request):
            answer = await self._answered(request)
        if request.ready_s is not None:
            asyncio.get_running_loop().call_soon(self._reserve.ended, request.ready_s)
        return answer

    async def close(self) -> None:
        """Ends connections, and lets go of models and index once nothing runs on them."""
        await self.worker.close()
        if self._neighbours is not None:
            await self._neighbours.close()

    async def _answered(self, request: RequestState) -> Answer:
        question, probe = request.question, request.probe
        retrieved = await self._retrieve(request)
        side = side_information(question)
        log = log_candidates(retrieved)
        if self._generation.rungs(question):
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
            auxiliary = lead.text if lead and not self._blocklist.blocks(lead.key) else ""
        if not candidates and request.is_turned_away:
            raise QueueFull("recommend")
        p_seen_C, is_scored = await self._score(request, candidates, context_ids)
        with probe.during(Stage.RERANK):
            suggestions = ranked(
                question,
                candidates,
                p_seen_C,
                is_scored=is_scored,
                is_best_first=self._generation.is_best_first,
                num_searches=self._num_searches(question),
                config=self._config.ranking,
                randomness=self._random,
            )
        return Answer(
            suggestions=suggestions,
            auxiliary_text=auxiliary,
            omissions=request.in_stage_order(),
            is_public=self._is_public(question),
        )

    def _is_public(self, question: Question) -> bool:
        """Returns whether the caller told nothing but the query and what the log holds."""
        if question.answer or question.side_information:
            return False
        find = self._retrieval.index.find if self._retrieval else lambda _: None
        return all(find(text) is not None for text in question.session_queries)

    def _num_searches(self, question: Question) -> float | None:
        """Returns how often queries with the prefix were searched; None if it does not matter."""
        if not (question.scenario.completes_prefix and self._generation.tells_probabilities):
            return None
        return self._retrieval.index.num_searches(question.query) if self._retrieval else 0.0

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
        generation = asyncio.ensure_future(self._generation.sequences(request, prompt))
        try:
            # What scoring will need is made while the generator runs, not after it.
            for _ in range(_TURNS_TO_START):
                await asyncio.sleep(0)
            context_ids = self._prepared(question, side, log, request.probe)
            sequences = await generation
        finally:
            generation.cancel()
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

    async def _retrieve(self, request: RequestState) -> Retrieved:
        """Returns known queries that fit, through the encoder where the exact table lacks them."""
        question, retrieval = request.question, self._retrieval
        if retrieval is None:
            request.omit(Stage.RETRIEVE, Left.SKIPPED, Why.NOT_IN_BUNDLE)
            return NOTHING
        query = question.query
        if question.scenario.completes_prefix:
            with request.probe.during(Stage.RETRIEVE):
                return retrieval.completions(query, question.session_queries)
        with request.probe.during(Stage.RETRIEVE):
            exact = retrieval.exact(query)
        if exact is not None:
            return exact
        if self.bundle.manifest.encoder is None:
            request.omit(Stage.ENCODE, Left.SKIPPED, Why.NOT_IN_BUNDLE)
        else:
            rungs = self._generation.rungs(question)
            plan = self._dispatcher.plan(request, encode=True, rungs=rungs)
            request.adopt(plan, Stage.ENCODE)
            if plan.encode:
                with request.probe.during(Stage.TOKENISE):
                    row = LookupRow(query, self.bundle.encoder_ids(query))
                done = await self._dispatcher.submit(request, ENCODE, row, later_s=0.0)
                if done is not None:
                    found: Found = done.result
                    request.probe.add(Stage.ENCODE, found.encode_s, ago_s=found.search_s)
                    if found.retrieved is not None:
                        request.probe.add(Stage.RETRIEVE, found.search_s)
                        return found.retrieved
                    with request.probe.during(Stage.RETRIEVE):
                        nearest = await self._nearest(request, found.embedding_D, plan)
                        return retrieval.around(query, nearest)
        with request.probe.during(Stage.RETRIEVE):
            return retrieval.nearby(query, None)

    async def _nearest(
        self, request: RequestState, embedding_D: Floats, plan: Plan
    ) -> tuple[Rows, Floats] | None:
        """Returns the rows that a server finds nearest, or None with an omission.

        It gets half of the time that is not planned for other stages: plans are no promises. And
        always some of what is left.
        """
        assert self._neighbours is not None
        assert self._retrieval is not None
        left_s = request.deadline.left_s()
        works = works_of(False, plan.rung, plan.num_scored)
        later_s = sum(self.worker.models.costs.predict_s(w, 1) for w in works)
        limit_s = max((left_s - later_s) / 2, _LEAST_SEARCH_SHARE * left_s)
        finish_by_s = request.deadline.at_s - left_s + limit_s
        try:
            return await self._neighbours.nearest(
                embedding_D, self._retrieval.num_nearest, finish_by_s
            )
        except TooLate:
            request.omit(Stage.RETRIEVE, Left.DEGRADED, Why.BUDGET)
        except EngineError:
            request.omit(Stage.RETRIEVE, Left.DEGRADED, Why.FAILURE)
        return None

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
        plan = self._dispatcher.plan(request, encode=False, rungs=())
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
        return merged(
            (),
            [Candidate(t, key_of(t), Source.LOG) for t in texts],
            excluded_keys=excluded | {c.key for c in candidates},
            is_blocked=self._blocklist.blocks,
            limit=missing,
        )
