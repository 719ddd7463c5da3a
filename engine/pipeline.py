"""A request's way through the engine: plan, look up, generate, merge, score, rank.

What does not fit the time that is left is left out, and the answer says so; a stage that fails
is left out too. Knows nothing of gRPC.
"""

import asyncio
import random

import numpy as np

from engine.answer import Answer, Question
from engine.attribution import Source
from engine.batcher import BatchFailed, Done, TooLate
from engine.bundle import Bundle
from engine.candidates import Candidate, WrittenTexts, key_of, merged, written_texts
from engine.completion import other_ranges
from engine.config import Config
from engine.costs import Work
from engine.deadline import Clock
from engine.errors import DeadlineUnreachable, QueueFull
from engine.models import Floats, GenerateRow, Sequences
from engine.planner import ENCODE, SCORED_SIZES, Plan, Wanted, make_plan, score_work
from engine.prompt import COOCCURRING, Prompt, SideInformation
from engine.ranking import PRIOR_P_SEEN, ranked, seen_probabilities
from engine.request import RequestState, log_candidates, side_information
from engine.retrieval import NOTHING, Retrieval, Retrieved
from engine.runner import Found, LocalRunner, LookupRow, RemoteModels, RemoteRunner
from engine.runtime import Runtime
from engine.safety import Blocklist
from engine.scoring import CandidateInputs
from engine.stages import Left, Probe, Stage, Why
from engine.worker import Worker

_MAX_OTHER_RANGES = 2  # further rows of a completion whose slots agree
# Turns of the event loop until a row just submitted is running, if the worker is free.
_TURNS_TO_START = 3


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
        blocklist: Blocklist | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        """Puts the parts together; runs nothing yet.

        Args:
            bundle: What answers are made with.
            runtime: Runs the models, or, with `remote`, searches the index.
            config: Settings.
            clock: Time of deadlines.
            remote: The bundle's models on a server, which run in place of the bundle's own.
            blocklist: What no answer may hold.
            randomness: Of exploration.
        """
        self.bundle = bundle
        self._config = config
        self._clock = clock
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
        generator = bundle.manifest.generator
        self._is_list = generator is not None and generator.mode == "list"
        self._inputs = CandidateInputs(bundle.vocabulary)
        if remote is None:
            runner = LocalRunner(
                bundle, self._retrieval, runtime, clock, max_batch_size=config.models.max_batch_size
            )
        else:
            runner = RemoteRunner(
                remote, self._retrieval, runtime, clock, concurrency=config.triton.concurrency
            )
        self.worker = Worker(runner, config, clock)

    async def recommend(self, question: Question, probe: Probe) -> Answer:
        """Returns an answer before the question's deadline.

        Raises:
            DeadlineUnreachable: the deadline has passed.
            QueueFull: too many rows wait for a model, before there is anything to answer with.
        """
        if question.deadline.has_passed:
            raise DeadlineUnreachable(question.deadline.left_s())
        request = RequestState(question, probe, self._config.server.reserve_ms / 1000)
        retrieved = await self._retrieve(request)
        with probe.during(Stage.TOKENISE):
            side = side_information(question)
            cooccurring = [SideInformation(COOCCURRING, t) for t in retrieved.cooccurring[::-1]]
            prompt = self.bundle.renderer.generation_prompt(
                question.scenario.name, question.query, [*cooccurring, *side]
            )
        log = log_candidates(retrieved)
        generation = asyncio.ensure_future(self._generate(request, prompt))
        try:
            # What scoring will need is made while the generator runs, not after it.
            for _ in range(_TURNS_TO_START):
                await asyncio.sleep(0)
            context_ids = self._prepared(question, side, log, probe)
            sequences = await generation
        finally:
            generation.cancel()
        with probe.during(Stage.MERGE):
            texts = self._written(question, prompt, sequences)
            candidates = self._candidates(question, texts, log)
        if prompt.healed and sequences and len(candidates) < question.num_suggestions:
            more = await self._generate_otherwise(request, prompt, sequences)
            with probe.during(Stage.MERGE):
                texts = self._written(question, prompt, more)
                candidates = self._candidates(question, texts, log)
            if len(candidates) < question.num_suggestions and not question.query.endswith(" "):
                further = await self._next_words(request, [*cooccurring, *side])
                with probe.during(Stage.MERGE):
                    texts = texts._replace(
                        finished=texts.finished + further.finished, cut=texts.cut + further.cut
                    )
                    candidates = self._candidates(question, texts, log)
        with probe.during(Stage.MERGE):
            if prompt.healed:
                candidates += self._longer(question, candidates)
            lead = texts.auxiliary
            auxiliary = lead.text if lead and not self._blocklist.blocks(lead.key) else ""
        p_seen_C, is_scored = await self._score(request, candidates, context_ids)
        with probe.during(Stage.RERANK):
            suggestions = ranked(
                question,
                candidates,
                p_seen_C,
                is_scored=is_scored,
                config=self._config.ranking,
                randomness=self._random,
            )
        return Answer(
            suggestions=suggestions,
            auxiliary_text=auxiliary,
            omissions=request.in_stage_order(),
        )

    async def _retrieve(self, request: RequestState) -> Retrieved:
        """Returns known queries that fit, through the encoder where the exact table lacks them."""
        question, retrieval = request.question, self._retrieval
        if retrieval is None:
            request.omit(Stage.RETRIEVE, Left.SKIPPED, Why.NOT_IN_BUNDLE)
            return NOTHING
        query = question.query
        if question.scenario.completes_prefix:
            with request.probe.during(Stage.RETRIEVE):
                if retrieval.is_fast(query):
                    return retrieval.completions(query, question.session_queries)
                return await asyncio.to_thread(
                    retrieval.completions, query, question.session_queries
                )
        with request.probe.during(Stage.RETRIEVE):
            exact = retrieval.exact(query)
        if exact is not None:
            return exact
        if self.bundle.manifest.encoder is None:
            request.omit(Stage.ENCODE, Left.SKIPPED, Why.NOT_IN_BUNDLE)
        else:
            plan = self._plan(request, encode=True, generate=True)
            request.adopt(plan, Stage.ENCODE)
            if plan.encode:
                with request.probe.during(Stage.TOKENISE):
                    row = LookupRow(query, self.bundle.encoder_ids(query))
                done = await self._submit(request, ENCODE, row, later_s=0.0)
                if done is not None:
                    found: Found = done.result
                    request.probe.add(Stage.ENCODE, found.encode_s)
                    request.probe.add(Stage.RETRIEVE, found.search_s)
                    return found.retrieved
        with request.probe.during(Stage.RETRIEVE):
            return retrieval.nearby(query, None)

    async def _generate(self, request: RequestState, prompt: Prompt) -> Sequences | None:
        rungs = self.bundle.rungs[request.question.scenario.name]
        if not rungs:
            request.omit(Stage.GENERATE, Left.SKIPPED, Why.NOT_IN_BUNDLE)
            return None
        plan = self._plan(request, encode=False, generate=True)
        request.adopt(plan, Stage.GENERATE)
        row = GenerateRow(prompt.ids, prompt.first_token_range, rungs[0])
        for rung in rungs:  # best first; what is planned is worth more than a smaller cached one
            cached = self.worker.cached(row._replace(rung=rung))
            if cached is not None:
                if rung == rungs[0]:
                    request.omit(Stage.GENERATE, Left.SKIPPED, Why.CACHED)
                else:  # less than was wanted, for the reason that the plan gives
                    why = next(o.reason for o in plan.omissions if o.stage is Stage.GENERATE)
                    request.omit(Stage.GENERATE, Left.DEGRADED, why)
                return cached
            if rung == plan.rung:
                break
        if plan.rung is None:
            return None
        row = row._replace(rung=plan.rung)
        later_s = (
            self.worker.costs.predict_s(score_work(SCORED_SIZES[0]), 1) if plan.num_scored else 0.0
        )
        done = await self._submit(request, plan.rung.work, row, later_s=later_s)
        if done is None:
            return None
        request.probe.add(Stage.GENERATE, done.run_s)
        return done.result

    async def _generate_otherwise(
        self, request: RequestState, prompt: Prompt, sequences: Sequences
    ) -> Sequences:
        """Returns more completions if time allows: ones that begin with other tokens.

        Slots may agree on a rare prefix; the parts of the range of first tokens that none of them
        chose give texts that differ by construction.
        """
        plan = self._plan(request, encode=False, generate=True)
        used = [ids[0] for ids in sequences.ids if ids]
        if plan.rung is None or self._is_list:
            return sequences
        rows = [
            GenerateRow(prompt.ids, part, plan.rung)
            for part in other_ranges(prompt.first_token_range, used, _MAX_OTHER_RANGES)
        ]
        later_s = self.worker.costs.predict_s(score_work(SCORED_SIZES[0]), 1)
        work = plan.rung.work
        tasks = [self._submit(request, work, row, later_s=later_s) for row in rows]
        ids, is_finished, run_s = list(sequences.ids), list(sequences.is_finished), 0.0
        for done in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(done, Done):
                ids += done.result.ids
                is_finished += done.result.is_finished
                run_s = max(run_s, done.run_s)
            elif isinstance(done, BaseException) and not isinstance(done, QueueFull):
                raise done
        request.probe.add(Stage.GENERATE, run_s)
        return Sequences(ids, is_finished)

    async def _next_words(self, request: RequestState, side: list[SideInformation]) -> WrittenTexts:
        """Returns completions as if a space had been typed, too: the prefix may be a whole word."""
        question = request.question
        with request.probe.during(Stage.TOKENISE):
            prompt = self.bundle.renderer.generation_prompt(
                question.scenario.name, question.query + " ", side
            )
        try:
            sequences = await self._generate(request, prompt)
        except QueueFull:  # there is an answer already
            request.omit(Stage.GENERATE, Left.DEGRADED, Why.OVERLOAD)
            sequences = None
        if sequences is not None:
            sequences = await self._generate_otherwise(request, prompt, sequences)
        with request.probe.during(Stage.MERGE):
            return self._written(question, prompt, sequences)

    def _written(
        self, question: Question, prompt: Prompt, sequences: Sequences | None
    ) -> WrittenTexts:
        return written_texts(
            self.bundle.vocabulary,
            sequences,
            is_list=self._is_list,
            has_auxiliary_text=question.scenario.has_auxiliary_text,
            healed=prompt.healed,
        )

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
            self._inputs.attach(question.query, log)
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
        plan = self._plan(request, encode=False, generate=False)
        request.adopt(plan, Stage.SCORE)
        if plan.num_scored == 0:
            return prior_C, False
        scored = candidates[: plan.num_scored]
        with request.probe.during(Stage.TOKENISE):
            row = self._inputs.row(question.query, context_ids, scored)
        done = await self._submit(request, score_work(len(scored)), row, later_s=0.0)
        if done is None:
            return prior_C, False
        request.probe.add(Stage.SCORE, done.run_s)
        is_known_C = np.array([c.popularity > 0 for c in scored])
        return seen_probabilities(spec, question.scenario.name, done.result, is_known_C), True

    async def _submit(
        self, request: RequestState, work: Work, row: object, *, later_s: float
    ) -> Done | None:
        """Returns the result of a row, or None with an omission if it fails or comes too late."""
        finish_by_s = request.deadline.at_s - later_s
        queued_s = self._clock.now_s()
        # A stage that is late although nothing was ahead of it was too long for the budget.
        why = Why.OVERLOAD if self.worker.load(work).wait_s > 0 else Why.BUDGET
        try:
            async with asyncio.timeout(max(0.0, finish_by_s - queued_s)):
                done = await self.worker.submit(work, row, finish_by_s)
        except (TooLate, TimeoutError):
            request.probe.add(Stage.QUEUE, self._clock.now_s() - queued_s)
            request.omit(work.stage, Left.SKIPPED, why)
            return None
        except BatchFailed:
            request.omit(work.stage, Left.SKIPPED, Why.FAILURE)
            return None
        except QueueFull:
            if work.stage is not Stage.SCORE:  # by then there is an answer: order it by the prior
                raise
            request.omit(work.stage, Left.SKIPPED, Why.OVERLOAD)
            return None
        request.probe.add(Stage.QUEUE, done.queue_s)
        return done

    def _plan(self, request: RequestState, *, encode: bool, generate: bool) -> Plan:
        rungs = self.bundle.rungs[request.question.scenario.name] if generate else ()
        wanted = Wanted(
            encode=encode, rungs=rungs, score=self.bundle.manifest.click_model is not None
        )
        first = ENCODE if encode else rungs[0].work if rungs else score_work(SCORED_SIZES[0])
        load = self.worker.load(first)
        return make_plan(self.worker.costs, wanted, request.deadline.left_s(), load)

    def _candidates(
        self, question: Question, texts: WrittenTexts, log: list[Candidate]
    ) -> list[Candidate]:
        excluded = question.excluded_keys | {key_of(question.query)}
        candidates = merged(
            texts.finished,
            log,
            excluded_keys=excluded,
            is_blocked=self._blocklist.blocks,
            limit=SCORED_SIZES[0],
        )
        if len(candidates) < question.num_suggestions and texts.cut:
            candidates += merged(
                texts.cut,
                (),
                excluded_keys=excluded | {c.key for c in candidates},
                is_blocked=self._blocklist.blocks,
                limit=question.num_suggestions - len(candidates),
            )
        new = [c for c in candidates if c.source is Source.GENERATED]
        if self._retrieval is not None and new:
            popularity, npmi = self._retrieval.known(question.query, [c.text for c in new])
            for candidate, count, association in zip(new, popularity, npmi, strict=True):
                candidate.popularity, candidate.npmi = count, association
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
