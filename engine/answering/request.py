"""What one request carries from stage to stage. Knows nothing of how stages work."""

from engine.answering.answer import Question
from engine.answering.candidates import Candidate, key_of
from engine.execution.retrieval import Retrieved
from engine.feedback.attribution import Source
from engine.formats.prompt import ANSWER, SESSION, SideInformation
from engine.scheduling.planner import Plan
from engine.scheduling.stages import Left, Omission, Probe, Stage, Why


class RequestState:
    """What one request carries from stage to stage.

    Attributes:
        question: What is asked.
        probe: Where its time goes.
        deadline: When its answer has to be ready for the way back.
        ready_s: When, on the clock, it had or gave up the last result of a model or a server; None
            before.
        is_turned_away: Whether a row of it met a full queue.
    """

    __slots__ = ("_omissions", "deadline", "is_turned_away", "probe", "question", "ready_s")

    def __init__(self, question: Question, probe: Probe, reserve_s: float) -> None:
        """Starts without omissions; `reserve_s` of the deadline is kept for what follows models."""
        self.question = question
        self.probe = probe
        self.deadline = question.deadline.sooner(reserve_s)
        self.ready_s: float | None = None
        self.is_turned_away = False
        self._omissions: dict[Stage, Omission] = {}

    def omit(self, stage: Stage, kind: Left, reason: Why) -> None:
        """Notes what a stage left out; the last word on a stage counts."""
        self._omissions[stage] = Omission(stage, kind, reason)

    def has_omitted(self, stage: Stage) -> bool:
        """Returns whether anything is noted of a stage."""
        return stage in self._omissions

    def adopt(self, plan: Plan, stage: Stage) -> None:
        """Takes over what a plan leaves out of one stage."""
        for omission in plan.omissions:
            if omission.stage is stage:
                self._omissions[stage] = omission

    def keep_partial(self, stage: Stage) -> None:
        """Notes that a stage gave something before it had to be skipped."""
        omission = self._omissions.get(stage)
        if omission and omission.kind is Left.SKIPPED and omission.reason is not Why.CACHED:
            self.omit(stage, Left.DEGRADED, omission.reason)

    def in_stage_order(self) -> tuple[Omission, ...]:
        """Returns the omissions."""
        return tuple(self._omissions[s] for s in Stage if s in self._omissions)


def log_candidates(retrieved: Retrieved) -> list[Candidate]:
    """Returns what was retrieved as candidates, best first."""
    return [
        Candidate(text, key_of(text), Source.LOG, popularity, npmi)
        for text, popularity, npmi in zip(
            retrieved.texts, retrieved.popularity, retrieved.npmi, strict=True
        )
    ]


def side_information(question: Question) -> list[SideInformation]:
    """Returns the context beside co-occurring queries, what matters most last."""
    side = list(question.side_information[::-1])
    if question.answer:
        side.append(SideInformation(ANSWER, question.answer))
    side += [SideInformation(SESSION, q) for q in question.session_queries]
    return side
