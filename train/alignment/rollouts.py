"""Lists that the policy draws, as ids, as texts and by what the click model expects of them.

Knows nothing of losses.
"""

# K lists of a prompt, S sequences of a list, N new tokens
import atexit
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from torch import Tensor

from engine.answering.candidates import WrittenTexts, key_of, written_texts
from engine.execution.models import cut_sequences
from engine.formats.features import trigrams
from engine.formats.vocabulary import Vocabulary
from train.alignment.prompts import AlignmentPrompt
from train.clicks.judge import Judge, Judged, Judgement, prefers_nothing
from train.generation.sampler import Lists, Sampler

Floats = NDArray[np.float64]


class Drawn(NamedTuple):
    """The lists of one prompt.

    Texts are by list and sequence: none where nothing usable was written (cut at the limit, no
    text that a response may hold), one in a slot, any number in list form. The auxiliary text,
    which nobody clicks, is apart; empty where there is none.
    """

    prompt: AlignmentPrompt
    ids_KSN: Tensor
    logprobs_KS: Tensor  # of whole sequences, under the policy that drew them
    texts_KS: list[list[list[str]]]
    auxiliary_K: list[str]


class Worth(NamedTuple):
    """What the click model expects of the texts of one prompt."""

    p_seen: dict[str, float]  # text -> p(click | seen); 0 for the query itself
    reward: dict[str, float]  # text -> the same or a lower bound of it, 0 for what is irrelevant
    is_known: dict[str, bool]


def read_lists(
    vocabulary: Vocabulary, prompts: Sequence[AlignmentPrompt], lists: Lists, *, is_list: bool
) -> list[Drawn]:
    """Returns drawn lists with their texts, as the engine would read them."""
    logprobs_BKS = lists.logprobs.sum(3)
    drawn: list[Drawn] = []
    for b, prompt in enumerate(prompts):
        read_KS = [
            [_read(vocabulary, prompt, s, ids_N, is_list) for s, ids_N in enumerate(ids_SN)]
            for ids_SN in lists.ids[b].tolist()
        ]
        texts_KS = [[[c.text for c in read.finished] for read in read_S] for read_S in read_KS]
        first_K = [read_S[0].auxiliary for read_S in read_KS]
        auxiliary_K = [first.text if first else "" for first in first_K]
        drawn.append(Drawn(prompt, lists.ids[b], logprobs_BKS[b], texts_KS, auxiliary_K))
    return drawn


T = TypeVar("T")


def _leave_group() -> None:
    """Ends the group of processes: threads of gloo that outlive the interpreter abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Drawer:
    """Draws lists from models; under torchrun each process draws its share, and gets all."""

    def __init__(self, vocabulary: Vocabulary, *, mode: str, bf16: bool, seed: int) -> None:
        """Takes how lists are drawn; see `draw_lists`. `seed` is that of all draws."""
        self._vocabulary, self._mode, self._bf16, self._seed = vocabulary, mode, bf16, seed
        self._processes = PartialState(cpu=not torch.cuda.is_available())
        if self._processes.num_processes > 1:
            atexit.register(_leave_group)

    @property
    def is_first_process(self) -> bool:
        """Whether this process writes the results; the others hold the same ones."""
        return self._processes.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device = self._processes.device
        assert device is not None
        return device

    def agreed(self, value: T) -> T:
        """Returns the first process' value to all, once all have come here.

        Figures that differ in their last bit must not lead processes apart.
        """
        if self._processes.num_processes == 1:
            return value
        values = [value]
        broadcast_object_list(values)
        return values[0]

    def __call__(
        self,
        model: Any,
        prompts: Sequence[AlignmentPrompt],
        *,
        num_lists: int,
        seed: int,
        temperature: float,
    ) -> list[Drawn]:
        """Returns the lists of each prompt, in their order; `seed` is that of these draws."""
        sampler = Sampler(model.eval(), bf16=self._bf16)
        first, step = self._processes.process_index, self._processes.num_processes
        shared = range(first, len(prompts), step)
        own = draw_lists(
            sampler,
            self._vocabulary,
            [prompts[i] for i in shared],
            [Random(f"{self._seed} {seed} {i}").getrandbits(62) for i in shared],
            mode=self._mode,
            num_lists=num_lists,
            temperature=temperature,
        )
        drawn = dict(zip(shared, own, strict=True))
        if step > 1:
            drawn = dict(gather_object(list(drawn.items())))
        return [drawn[i] for i in range(len(prompts))]


def draw_lists(
    sampler: Sampler,
    vocabulary: Vocabulary,
    prompts: Sequence[AlignmentPrompt],
    seeds: Sequence[int],
    *,
    mode: str,
    num_lists: int,
    temperature: float,
) -> list[Drawn]:
    """Returns the lists of each prompt, in their order; scenarios are drawn one after another.

    Args:
        sampler: of the policy.
        vocabulary: of its tokens.
        prompts: of any scenarios.
        seeds: of each prompt.
        mode: "slots", "list" or "beam".
        num_lists: K.
        temperature: see `Sampler.sample`.
    """
    drawn: dict[int, Drawn] = {}
    for name in dict.fromkeys(p.scenario.name for p in prompts):
        places = [i for i, p in enumerate(prompts) if p.scenario.name == name]
        own = [prompts[i] for i in places]
        lists = sampler.sample(
            [p.drawn for p in own],
            [seeds[i] for i in places],
            mode=mode,
            num_lists=num_lists,
            temperature=temperature,
        )
        drawn |= zip(
            places, read_lists(vocabulary, own, lists, is_list=mode == "list"), strict=True
        )
    return [drawn[i] for i in range(len(prompts))]


def judge_lists(
    judge: Judge, drawn: Sequence[Drawn], *, level: float, relevance_floor: float
) -> list[Worth]:
    """Returns what the texts of each prompt are worth.

    Where the click model prefers nothing in a scenario, its texts are worth nothing.

    Args:
        judge: the click model.
        drawn: lists.
        level: texts are worth what their probability exceeds with this probability; 0: what is
            expected of them.
        relevance_floor: texts that share less of their letter trigrams with query and session
            are worth nothing; 0: no floor.
    """
    texts_of = [
        list(dict.fromkeys(t for texts_S in d.texts_KS for texts in texts_S for t in texts))
        for d in drawn
    ]
    asked = [
        Judged(
            d.prompt.scenario.name,
            d.prompt.query,
            d.prompt.side_information,
            texts,
            is_cold=d.prompt.is_cold,
        )
        for d, texts in zip(drawn, texts_of, strict=True)
        if texts
    ]
    found_U = judge(asked, level=level or 0.5)
    idle = _without_preference(asked, found_U)
    judgements = iter(found_U)
    worth: list[Worth] = []
    for d, texts in zip(drawn, texts_of, strict=True):
        if not texts:
            worth.append(Worth({}, {}, {}))
            continue
        found = next(judgements)
        context = [d.prompt.query, *(item.text for item in d.prompt.side_information)]
        counts_C = np.array([key_of(t) != key_of(d.prompt.query) for t in texts], np.float64)
        fits_C = np.array(
            [relevance_floor == 0 or shared_trigrams(t, context) >= relevance_floor for t in texts]
        )
        p_C = found.p_seen_C * counts_C
        reward_C = (found.lower_C if level else found.p_seen_C) * counts_C * fits_C
        reward_C *= d.prompt.scenario.name not in idle
        worth.append(
            Worth(
                dict(zip(texts, p_C.tolist(), strict=True)),
                dict(zip(texts, reward_C.tolist(), strict=True)),
                dict(zip(texts, found.is_known_C.tolist(), strict=True)),
            )
        )
    return worth


def _without_preference(asked: Sequence[Judged], found: Sequence[Judgement]) -> set[str]:
    """Returns the scenarios in which all texts are worth the same."""
    own: dict[str, list[Judgement]] = {}
    for question, judgement in zip(asked, found, strict=True):
        own.setdefault(question.scenario, []).append(judgement)
    return {
        name
        for name, judgements in own.items()
        if prefers_nothing(
            np.concatenate([j.p_seen_C for j in judgements]),
            np.concatenate([j.is_known_C for j in judgements]),
        )
    }


def shared_trigrams(text: str, context: Sequence[str]) -> float:
    """Returns the share of a text's letter trigrams that occur in its context."""
    own = trigrams(text)
    known = set().union(*map(trigrams, context))
    return len(own & known) / max(1, len(own))


def _read(
    vocabulary: Vocabulary, prompt: AlignmentPrompt, number: int, ids_N: list[int], is_list: bool
) -> WrittenTexts:
    """Returns what one sequence of a list says."""
    return written_texts(
        vocabulary,
        cut_sequences([ids_N], limits=[len(ids_N)]),
        is_list=is_list,
        has_auxiliary_text=prompt.scenario.has_auxiliary_text and number == 0,
        healed=prompt.rendered.healed,
    )
