"""Lists that a language model writes as it comes: examples and a question, nothing is trained.

The simple thing that fine-tuning must beat. Knows nothing of logs.
"""

# B questions of a batch, L tokens with padding
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from engine.answering.candidates import key_of
from engine.formats.manifest import ScenarioSpec
from engine.formats.text import normalise
from train.evaluation.lists import ProducedList
from train.models.backbone import has_fast_bf16
from train.models.checkpoint import load_pretrained, read_tokenizer
from train.report.policies import Question

_BATCH_SIZE = 16
_MAX_NEW_TOKENS = 64
_EMPTY_LINE = "\u010a\u010a"  # two newlines in the alphabet of byte-level BPE
_ITEM = re.compile(r"\s*\d+[.)]\s*(\S.*)")
_SUGGESTION = (
    "What people search on the web after a query.",
    "Query",
    (
        ("garden chairs", "folding garden chairs|garden chair cushions|garden table|wooden garden "
         "chairs|garden chairs sale"),
        ("flu symptoms", "how long does flu last|flu treatment|cold or flu|flu symptoms in "
         "children|when is flu contagious"),
        ("laptop bag", "leather laptop bag|laptop backpack|laptop bag 17 inch|waterproof laptop "
         "bag|laptop sleeve"),
    ),
)  # fmt: skip
_COMPLETION = (
    "Queries that people search on the web, by how they begin.",
    "Begins with",
    (
        ("garden ch", "garden chairs|garden chair cushions|garden chest|garden chairs sale|garden "
         "chimes"),
        ("flu sy", "flu symptoms|flu symptoms in children|flu symptoms without fever|flu symptoms "
         "day by day|flu syrup"),
        ("lap", "laptop|laptop bag|laptop stand|lap desk|laptop charger"),
    ),
)  # fmt: skip
_CLARIFICATION = (
    "What people may mean by a query on the web, said more precisely.",
    "Query",
    (
        ("garden chairs", "plastic garden chairs|wooden garden chairs|metal garden chairs|garden "
         "chairs for children|rattan garden chairs"),
        ("flu", "flu symptoms|flu treatment|flu vaccine|flu in pregnancy|flu in children"),
        ("laptop bag", "laptop bag for women|laptop bag for men|leather laptop bag|laptop bag 15 "
         "inch|laptop bag with wheels"),
    ),
)  # fmt: skip


class _Kept(msgspec.Struct):
    """What a checkpoint has written so far, by number of the question."""

    checkpoint: str
    asked: list[tuple[str, str]]  # scenario and query of each question
    written: dict[int, str]


def prompted_lists(
    checkpoint: str,
    questions: Sequence[Question],
    scenarios: dict[str, ScenarioSpec],
    name: str,
    *,
    num_listed: int,
    kept: Path,
    report: Callable[[str], None],
) -> list[ProducedList]:
    """Returns what the model writes for each question after three examples, greedily.

    Args:
        checkpoint: hub id, directory or GGUF file of a causal language model.
        questions: of `scenarios`.
        scenarios: by name.
        name: of the system.
        num_listed: N, texts of a list at most.
        kept: file of what was written. It takes long: what this checkpoint has written for these
            questions is not written anew, and after an interruption the rest is.
        report: called with how far it is.

    Raises:
        ValueError: the checkpoint cannot be loaded.
    """
    asked = [(q.scenario, q.query) for q in questions]
    state = _Kept(checkpoint, asked, {})
    if kept.is_file():
        with suppress(msgspec.DecodeError):  # another release wrote it
            known = msgspec.json.decode(kept.read_bytes(), type=_Kept)
            if (known.checkpoint, known.asked) == (checkpoint, asked):
                state = known
    if len(state.written) < len(questions):
        _write(state, scenarios, name, kept, report)
    return [
        ProducedList(
            scenario=question.scenario,
            query=question.query,
            system=name,
            texts=tuple(
                items_of(
                    state.written[i],
                    question.query,
                    completes_prefix=scenarios[question.scenario].completes_prefix,
                )[:num_listed]
            ),
        )
        for i, question in enumerate(questions)
    ]


def _write(
    state: _Kept,
    scenarios: dict[str, ScenarioSpec],
    name: str,
    kept: Path,
    report: Callable[[str], None],
) -> None:
    """Has the checkpoint write what is missing, and keeps it after every batch."""
    tokenizer = read_tokenizer(state.checkpoint).tokenizer
    dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
    model = load_pretrained(AutoModelForCausalLM, state.checkpoint, dtype=dtype).eval()
    prompts = [_prompt(scenarios[scenario], query) for scenario, query in state.asked]
    ids = [e.ids for e in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    missing = [i for i in range(len(ids)) if i not in state.written]
    missing.sort(key=lambda i: len(ids[i]))
    kept.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(missing), _BATCH_SIZE):
        part = missing[start : start + _BATCH_SIZE]
        report(f"{name}: {len(state.written)} of {len(ids)} questions")
        texts = _continued(model, tokenizer, [ids[i] for i in part])
        state.written.update(zip(part, texts, strict=True))
        partial = kept.with_name(kept.name + ".partial")
        partial.write_bytes(msgspec.json.encode(state))
        partial.replace(kept)


def _prompt(scenario: ScenarioSpec, query: str) -> str:
    if scenario.completes_prefix:
        task, label, shots = _COMPLETION
    else:
        task, label, shots = _CLARIFICATION if scenario.has_auxiliary_text else _SUGGESTION
    parts = [task]
    for asked, answers in shots:
        lines = [f"{n}. {text}" for n, text in enumerate(answers.split("|"), start=1)]
        parts.append("\n".join([f"{label}: {asked}", *lines]))
    return "\n\n".join([*parts, f"{label}: {query}\n1."])


@torch.inference_mode()
def _continued(model: Any, tokenizer: Tokenizer, prompts: list[list[int]]) -> list[str]:
    """Returns what follows each prompt, up to the first empty line; a line that was cut goes."""
    own = model.generation_config.eos_token_id
    vocabulary = tokenizer.get_vocab()
    ends = {i for token, i in vocabulary.items() if _EMPTY_LINE in token}
    ends |= set(own if isinstance(own, list) else [own])
    width = max(map(len, prompts))
    ids_BL = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask_BL = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output_BL = model.generate(
        input_ids=ids_BL,
        attention_mask=mask_BL,
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=list(ends),
    )
    new = [list(takewhile(lambda i: i not in ends, ids)) for ids in output_BL[:, width:].tolist()]
    texts: list[str] = []
    for ids in new:
        text = tokenizer.decode(ids)
        is_cut = len(ids) == _MAX_NEW_TOKENS and "\n\n" not in text
        kept = text.rpartition("\n")[0] if is_cut else text.split("\n\n", 1)[0]
        texts.append(f"1.{kept}")
    return texts


def items_of(written: str, query: str, *, completes_prefix: bool) -> list[str]:
    """Returns the distinct texts of a numbered list, normalised, in its order.

    Args:
        written: lines such as "1. garden chairs"; others are left out.
        query: what was asked, which is no answer.
        completes_prefix: whether texts must start with it.
    """
    texts: dict[str, str] = {}
    for line in written.split("\n"):
        match = _ITEM.match(line)
        text = normalise(match.group(1)) if match else ""
        if completes_prefix and not text.startswith(query):
            continue
        if text and key_of(text) != key_of(query):
            texts.setdefault(key_of(text), text)
    return list(texts.values())
