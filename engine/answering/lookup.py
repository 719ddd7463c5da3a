"""What the log knows of a request: which known queries fit it, and whether it tells anything else.

Where the exact table lacks a query, the encoder and the nearest known ones are asked, if there is
time. Knows nothing of generating or ranking.
"""

from collections.abc import Sequence

from engine.answering.answer import Question
from engine.answering.dispatch import Dispatcher
from engine.answering.request import RequestState
from engine.errors import EngineError
from engine.execution.bundle import Bundle
from engine.execution.retrieval import NOTHING, Neighbours, Retrieval, Retrieved
from engine.execution.runner import Found, LookupRow
from engine.formats.graph import Floats, Rows
from engine.formats.prompt import ANSWER, SESSION
from engine.scheduling.batcher import TooLate
from engine.scheduling.planner import ENCODE, Plan, Rung, works_of
from engine.scheduling.stages import Left, Stage, Why

_LEAST_SEARCH_SHARE = 0.2  # of the time left, for a search on a server


class Lookup:
    """Looks requests up in one bundle's log."""

    def __init__(
        self,
        bundle: Bundle,
        retrieval: Retrieval | None,
        dispatcher: Dispatcher,
        neighbours: Neighbours | None,
    ) -> None:
        """Takes the log, None if there is none, and what finds nearest queries in its place."""
        self._bundle = bundle
        self._retrieval = retrieval
        self._dispatcher = dispatcher
        self._neighbours = neighbours

    def is_public(self, question: Question) -> bool:
        """Returns whether the models read nothing but the query and what the log holds.

        They read no kind of side information that the bundle does not know.
        """
        kinds = self._bundle.manifest.prompt.side_information_kinds
        told = [item.kind for item in question.side_information]
        if question.answer:
            told.append(ANSWER)
        if not set(told).isdisjoint(kinds):
            return False
        if SESSION not in kinds:
            return True
        index = self._retrieval.index if self._retrieval else None
        return all(index and index.find(t) is not None for t in question.session_queries)

    def num_searches(self, prefix: str) -> float:
        """Returns how often queries with the prefix were searched."""
        return self._retrieval.index.num_searches(prefix) if self._retrieval else 0.0

    async def retrieved(self, request: RequestState, rungs: Sequence[Rung]) -> Retrieved:
        """Returns known queries that fit, with an omission where there might have been better.

        Args:
            request: Whose query is looked up.
            rungs: Of the generation that follows, for which time is kept.
        """
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
        if self._bundle.manifest.encoder is None:
            request.omit(Stage.ENCODE, Left.SKIPPED, Why.NOT_IN_BUNDLE)
        else:
            plan = self._dispatcher.plan(request, encode=True, rungs=rungs)
            request.adopt(plan, Stage.ENCODE)
            if plan.encode:
                with request.probe.during(Stage.TOKENISE):
                    row = LookupRow(query, self._bundle.encoder_ids(query))
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

    async def close(self) -> None:
        """Ends the connection to what finds nearest queries."""
        if self._neighbours is not None:
            await self._neighbours.close()

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
        later_s = sum(self._dispatcher.worker.models.costs.predict_s(w, 1) for w in works)
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
        finally:
            request.ready_s = request.deadline.clock.now_s()
        return None
