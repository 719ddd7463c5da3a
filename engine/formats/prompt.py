"""The universal prompt: one rendering of a request for every scenario, used to train and serve.

After the template of GQR (arXiv 2504.10208, section on the prompt): instruction, then the
inputs (side information and the user's query), then the response. Control tokens stand for the
fixed words of the template:

    [instruction] <scenario> {<kind> text}* <query> query <respond>

Knows nothing of models; retrieval of co-occurring queries happens before.
"""

from collections.abc import Sequence
from typing import NamedTuple

from engine.formats.completion import HealedPrefix, heal
from engine.formats.manifest import PromptSpec, ScenarioSpec
from engine.formats.vocabulary import (
    FIRST_TEXT_ID,
    QUERY,
    RESPOND,
    Vocabulary,
    kind_token,
    scenario_token,
    slot_token,
)

SESSION = "session"  # previous queries of the session, oldest first
ANSWER = "answer"  # the assistant's answer to the query
COOCCURRING = "cooccurring"  # queries that co-occur with the query in past sessions, best first


class SideInformation(NamedTuple):
    """A piece of context beside the query."""

    kind: str
    text: str


class Prompt(NamedTuple):
    """A rendered request."""

    ids: list[int]
    first_token_range: tuple[int, int]  # [first, end) of the ids the first new token may take
    healed: HealedPrefix | None  # set where suggestions complete the query


class PromptRenderer:
    """Renders requests with one vocabulary. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary, spec: PromptSpec, scenarios: Sequence[ScenarioSpec]):
        """Looks up the control tokens that `scenarios` and the kinds of `spec` need.

        Raises:
            ValueError: the vocabulary lacks one of them, or the longest query does not fit.
        """
        self.vocabulary = vocabulary
        self._spec = spec
        self._scenarios = {s.name: s for s in scenarios}
        self._scenario_ids = {
            s.name: vocabulary.control_id(scenario_token(s.name)) for s in scenarios
        }
        self._kind_ids = {
            k: vocabulary.control_id(kind_token(k)) for k in spec.side_information_kinds
        }
        self._query_id = vocabulary.control_id(QUERY)
        self._respond_id = vocabulary.control_id(RESPOND)
        self._instruction = vocabulary.encode(spec.instruction) if spec.instruction else []
        num_fixed = len(self._instruction) + 3  # scenario, <query>, <respond>
        if num_fixed + spec.max_query_tokens > spec.max_tokens:
            raise ValueError(
                f"prompt.max_tokens is {spec.max_tokens}, must be at least "
                f"{num_fixed + spec.max_query_tokens}: the instruction has "
                f"{len(self._instruction)} tokens, a query up to {spec.max_query_tokens}, and "
                "there are 3 control tokens"
            )

    def generation_prompt(
        self, scenario: str, query: str, side_information: Sequence[SideInformation] = ()
    ) -> Prompt:
        """Returns the generator's prompt for normalised texts.

        Side information is given in the order it should be read: what matters most comes last.
        Where it does not fit, the first items are left out. Kinds that the vocabulary does not
        know are skipped. A query that is too long keeps its end.
        """
        healed = (
            heal(self.vocabulary, query) if self._scenarios[scenario].completes_prefix else None
        )
        query_ids = healed.kept_ids if healed else self.vocabulary.ids_of(query)
        ids = self._context(scenario, query_ids, side_information)
        allowed = healed.first_token_range if healed else (FIRST_TEXT_ID, self.vocabulary.size)
        return Prompt([*ids, self._respond_id], allowed, healed)

    def click_context(
        self, scenario: str, query: str, side_information: Sequence[SideInformation] = ()
    ) -> list[int]:
        """Returns the click model's context: as the prompt, without co-occurring queries.

        Leaving those out makes the score independent of retrieval; the index reaches the click
        model through its features.
        """
        kept = [item for item in side_information if item.kind != COOCCURRING]
        return self._context(scenario, self.vocabulary.ids_of(query), kept)

    def slot_ids(self, scenario: str, mode: str = "slots") -> list[int]:
        """Returns the tokens that start each sequence of a scenario.

        Slot 0 is there only where there is auxiliary text. Beams all start like the first text.
        """
        spec = self._scenarios[scenario]
        first = 0 if spec.has_auxiliary_text else 1
        slots = [self.vocabulary.control_id(slot_token(first + i)) for i in range(spec.num_slots)]
        if mode == "beam":
            start = 1 - first  # of the texts
            slots[start:] = [slots[start]] * len(slots[start:])
        return slots

    def _context(
        self, scenario: str, query_ids: Sequence[int], side_information: Sequence[SideInformation]
    ) -> list[int]:
        spec = self._spec
        tail = [self._query_id, *query_ids[-spec.max_query_tokens :]]
        head = [*self._instruction, self._scenario_ids[scenario]]
        room = spec.max_tokens - len(head) - len(tail) - 1  # 1: <respond>
        items: list[list[int]] = []
        for item in reversed(side_information):
            if item.kind not in self._kind_ids:
                continue
            ids = self.vocabulary.ids_of(item.text)[: spec.max_item_tokens]
            piece = [self._kind_ids[item.kind], *ids]
            if len(piece) > room:
                break
            room -= len(piece)
            items.append(piece)
        return [*head, *(i for piece in reversed(items) for i in piece), *tail]


def spread(slots: Sequence[int], num: int) -> list[int]:
    """Returns `num` of the slots, evenly spaced; all of them if `num` is their number.

    Slots are taught texts in bytewise order, so fewer slots should still cover the alphabet.
    """
    return [slots[(2 * i + 1) * len(slots) // (2 * num)] for i in range(num)]


def token_limits(
    scenario: ScenarioSpec, mode: str, num_texts: int | None = None, max_new: int | None = None
) -> list[int]:
    """Returns how many tokens each sequence of a panel may have, the one that ends it included.

    The auxiliary text's comes first if there is one. In list mode there is one sequence, as long as
    all texts, each with its separator or the end.

    Args:
        scenario: The panel.
        mode: "slots", "list" or "beam".
        num_texts: Auxiliary one not counted; None: as many as were taught.
        max_new: Tokens of a text; None: the scenario's.
    """
    has_auxiliary = scenario.has_auxiliary_text
    num_texts = scenario.num_slots - has_auxiliary if num_texts is None else num_texts
    limits = [scenario.max_auxiliary_tokens] * has_auxiliary
    limits += [max_new or scenario.max_new_tokens] * num_texts
    return [sum(limits)] if mode == "list" else limits
