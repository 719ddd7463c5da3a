"""Turns examples into token sequences: prompt and response, in slots or as one list.

    slots   per suggestion one suffix  [slot i] y_1 .. y_n <|eos|>, slot 0 the auxiliary text;
            suggestions in bytewise order, spread over the slots
    beam    per suggestion one suffix  [slot 1] y_1 .. y_n <|eos|>, slot 0 the auxiliary text: one
            distribution over all suggestions, for beam search to take the best of
    list    one suffix  [<|list|>] (auxiliary <|sep|>) q_1 <|sep|> q_2 .. <|eos|>, best first

Slots do not see one another. Were they ranks, their distributions would be nearly the same and
greedy decoding would write one text S times; in bytewise order each slot is another part of the
alphabet, and the texts differ (docs/decisions.md). The click model ranks them afterwards.

Suffixes share the prompt (train.models.shared_prefix). Knows nothing of where examples come from.
"""

import random
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from engine.formats.completion import continuation
from engine.formats.manifest import ScenarioSpec
from engine.formats.prompt import Prompt, PromptRenderer, spread
from engine.formats.vocabulary import EOS_ID, LIST, SEP_ID
from train.generation.examples import Example, Source
from train.models.shared_prefix import Packed, collate, next_token_labels, pack
from train.settings import Mode

_WINDOW_BATCHES = 32  # examples are sorted by length within so many batches


class Batch(NamedTuple):
    """What a training step takes; B sequences of L tokens."""

    input_ids: Tensor  # int64 (B, L)
    attention_mask: Tensor  # float32 (B, 1, L, L)
    position_ids: Tensor  # int64 (B, L)
    labels: Tensor  # int64 (B, L), shifted already


class ResponseEncoder:
    """Renders examples with one vocabulary."""

    def __init__(
        self, renderer: PromptRenderer, scenarios: Sequence[ScenarioSpec], mode: Mode
    ) -> None:
        """Takes the renderer that serving uses, too."""
        self._renderer = renderer
        self._scenarios = {s.name: s for s in scenarios}
        self._mode = mode
        self._list_id = renderer.vocabulary.control_id(LIST)

    def __call__(
        self, example: Example, rng: random.Random, only: Collection[str] | None = None
    ) -> Packed | None:
        """Returns prompt and response, or None if no suggestion is short enough.

        Args:
            example: what to render.
            rng: chooses the form where both are taught.
            only: of the suggestions, those in the response, which must be the best ones. They have
                the places, and so the losses, that they have among all. None: all.
        """
        spec = self._scenarios[example.scenario]
        prompt = self._prompt(example)
        answers = self._answers(example, prompt)
        num_kept = sum(only is None or text in only for text, _ in answers)
        if not num_kept:
            return None
        auxiliary: list[int] | None = None
        if spec.has_auxiliary_text and example.auxiliary_text:
            auxiliary = self.auxiliary_ids(example.scenario, example.auxiliary_text)
        as_list = self._mode == "list" or (self._mode == "both" and rng.random() < 0.5)
        if as_list and spec.has_auxiliary_text and auxiliary is None:
            if self._mode == "list":
                return None
            as_list = False  # a list without its question would teach to leave it out
        if as_list:
            ids = [i for _, i in answers]
            return pack(prompt.ids, [self._list(auxiliary, ids, num_kept)])
        return pack(prompt.ids, self._slots(example.scenario, auxiliary, answers, only))

    def num_fitting(self, example: Example) -> int:
        """Returns how many of the example's suggestions are short enough to be taught."""
        return len(self._answers(example, self._prompt(example)))

    def auxiliary_ids(self, scenario: str, text: str) -> list[int] | None:
        """Returns what is taught of an auxiliary text, or None if it is too long to be taught."""
        ids = self._renderer.vocabulary.encode(text)
        # The end takes a token of its own.
        return ids if len(ids) < self._scenarios[scenario].max_auxiliary_tokens else None

    def _prompt(self, example: Example) -> Prompt:
        return self._renderer.generation_prompt(
            example.scenario, example.query, example.side_information
        )

    def _answers(self, example: Example, prompt: Prompt) -> list[tuple[str, list[int]]]:
        """Returns the suggestions that are short enough, with what is taught of each."""
        vocabulary, spec = self._renderer.vocabulary, self._scenarios[example.scenario]
        if prompt.healed is not None:
            healed = prompt.healed
            found = [continuation(vocabulary, healed, t) for t in example.suggestions]
        else:
            found = vocabulary.encode_batch(example.suggestions)
        # The end takes a token of its own; what does not fit is not taught cut short.
        return [
            (text, ids)
            for text, ids in zip(example.suggestions, found, strict=True)
            if ids and len(ids) < spec.max_new_tokens
        ]

    def _list(
        self, auxiliary: list[int] | None, answers: list[list[int]], num_kept: int
    ) -> list[int]:
        ids = [self._list_id]
        for piece in [*([auxiliary] if auxiliary else []), *answers[:num_kept]]:
            ids += [*piece, SEP_ID]
        return [*ids[:-1], EOS_ID] if num_kept == len(answers) else ids

    def _slots(
        self,
        scenario: str,
        auxiliary: list[int] | None,
        answers: list[tuple[str, list[int]]],
        only: Collection[str] | None,
    ) -> list[list[int]]:
        slot_ids = self._renderer.slot_ids(scenario, self._mode)
        suffixes: list[list[int]] = []
        if self._scenarios[scenario].has_auxiliary_text:
            if auxiliary is not None:
                suffixes.append([slot_ids[0], *auxiliary, EOS_ID])
            slot_ids = slot_ids[1:]
        bytes_of = self._renderer.vocabulary.bytes_of
        answers = sorted(answers[: len(slot_ids)], key=lambda answer: bytes_of(answer[1]))
        slots = spread(slot_ids, len(answers))
        return [
            *suffixes,
            *(
                [slot, *ids, EOS_ID]
                for slot, (text, ids) in zip(slots, answers, strict=True)
                if only is None or text in only
            ),
        ]


class Responses(Dataset[Packed]):
    """Packed examples in a fixed random order, batches of similar lengths together.

    Examples are made when they are needed, a window of batches at a time, so a large log takes
    little memory; every pass makes them anew, with other prefixes and side information. Epochs
    are unrolled: `len` counts all of them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        make: Callable[[Source, random.Random], Packed | None],
        *,
        batch_size: int,
        num_epochs: float,
        seed: int,
        share: float = 1.0,
    ) -> None:
        """Takes shuffled sources and what makes a packed example of one.

        Args:
            sources: in the order of training.
            make: returns None where nothing can be made of a source.
            batch_size: examples.
            num_epochs: passes over the sources.
            seed: of the examples and of the order of batches.
            share: of the sources that give an example, about; above 0. Windows begin so far
                apart, and an epoch has so many examples, that each source is taken about once.

        Raises:
            ValueError: there are no sources.
        """
        if not sources:
            raise ValueError("nothing was mined that the generator could be trained on")
        self._sources = sources
        self._make = make
        self._batch_size = batch_size
        self._seed = seed
        self._window_size = batch_size * _WINDOW_BATCHES
        self._sources_a_window = self._window_size / share
        # Whole batches only: the last may be filled up with repeated sources.
        num_batches = max(1, round(len(sources) * share * num_epochs / batch_size))
        self._num_examples = num_batches * batch_size
        self._window: tuple[int, list[Packed]] = (-1, [])

    def __len__(self) -> int:
        """Returns the number of examples over all epochs."""
        return self._num_examples

    def __getitem__(self, index: int) -> Packed:
        """Returns an example; cheap if taken in order."""
        number, place = divmod(index, self._window_size)
        if number != self._window[0]:
            self._window = number, self._made(number)
        return self._window[1][place]

    def _made(self, number: int) -> list[Packed]:
        size = min(self._window_size, self._num_examples - number * self._window_size)
        rng = random.Random(self._seed * 1_000_003 + number)
        packed: list[Packed] = []
        offset, num_missing = round(number * self._sources_a_window), 0
        while len(packed) < size:
            made = self._make(self._sources[offset % len(self._sources)], rng)
            offset += 1
            if made is not None:
                packed.append(made)
                num_missing = 0
                continue
            num_missing += 1
            if num_missing > len(self._sources):
                raise ValueError("no mined suggestion fits the scenarios' max_new_tokens")
        packed.sort(key=lambda p: len(p.input_ids))
        batches = [packed[i : i + self._batch_size] for i in range(0, size, self._batch_size)]
        rng.shuffle(batches)
        return [p for batch in batches for p in batch]


def to_batch(packed: Sequence[Packed]) -> dict[str, Tensor]:
    """Returns the sequences as one `Batch`, as a dictionary because transformers wants one."""
    batch = collate(packed, multiple_of=8)
    return Batch(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        labels=next_token_labels(batch),
    )._asdict()
