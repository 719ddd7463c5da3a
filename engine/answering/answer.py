"""Questions and answers as the engine sees them. Knows nothing of gRPC or of how it answers."""

from dataclasses import dataclass
from typing import NamedTuple

from engine.feedback.attribution import Source
from engine.formats.manifest import ScenarioSpec
from engine.formats.prompt import SideInformation
from engine.scheduling.deadline import Deadline
from engine.scheduling.stages import Omission


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A valid request; all texts are normalised."""

    scenario: ScenarioSpec
    query: str
    session_queries: tuple[str, ...] = ()  # oldest first
    answer: str = ""
    side_information: tuple[SideInformation, ...] = ()  # most important first
    excluded_keys: frozenset[str] = frozenset()
    num_suggestions: int
    deadline: Deadline


class Suggestion(NamedTuple):
    """A text to show; its position is its place in `Answer.suggestions`."""

    text: str
    click_probability: float
    source: Source
    propensity: float  # of being at this position


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to show, and how it came about.

    Attributes:
        suggestions: Best first.
        auxiliary_text: What leads in; empty if nothing does.
        omissions: What was left out, and why.
        is_public: Whether the models read nothing but the query and what the bundle's log holds.
    """

    suggestions: tuple[Suggestion, ...]
    auxiliary_text: str
    omissions: tuple[Omission, ...]
    is_public: bool = False
