"""Questions from plain queries, scenarios in turn. Knows nothing of who answers them."""

from collections.abc import Iterable, Mapping, Sequence

from engine.answering.answer import Question
from engine.formats.manifest import ScenarioSpec
from engine.formats.text import normalise, normalise_prefix
from engine.scheduling.deadline import Deadline, MonotonicClock

_AMPLE_S = 600.0


def questions_of(
    queries: Iterable[str], scenarios: Mapping[str, ScenarioSpec], *, num_suggestions: int = 0
) -> list[Question]:
    """Returns a question for each query; where completions are wanted, its first half is typed.

    Args:
        queries: Those that are empty once normalised are left out.
        scenarios: By name.
        num_suggestions: 0: as many as the scenario says.
    """
    turns: Sequence[ScenarioSpec] = list(scenarios.values())
    questions: list[Question] = []
    for query in queries:
        scenario = turns[len(questions) % len(turns)]
        text = normalise(query)
        if scenario.completes_prefix:
            text = normalise_prefix(text[: -(-len(text) // 2)])
        if text:
            questions.append(
                Question(
                    scenario=scenario,
                    query=text,
                    num_suggestions=num_suggestions or scenario.num_suggestions,
                    deadline=Deadline.after(_AMPLE_S, MonotonicClock()),
                )
            )
    return questions
