"""What a language model writes as it comes: examples and a question, nothing is trained.

The simple thing that fine-tuning must beat, or a teacher of what the log does not say. Knows
nothing of logs.
"""

# B questions of a batch, L tokens with padding
import re
from collections.abc import Callable, Sequence
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
from train.models.backbone import has_fast_bf16
from train.models.checkpoint import load_pretrained, read_tokenizer

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


class _Asked(msgspec.Struct, frozen=True):
    """First line of the file of what was written: whether the rest answers these questions."""

    checkpoint: str
    questions: list[tuple[str, str]]  # scenario and query


class _Written(msgspec.Struct, frozen=True):
    """A further line: what a checkpoint wrote for a question."""

    question: int  # its number
    text: str


def prompted_texts(
    checkpoint: str,
    questions: Sequence[tuple[str, str]],
    scenarios: dict[str, ScenarioSpec],
    *,
    kept: Path,
    report: Callable[[str], None],
) -> list[list[str]]:
    """Returns the distinct texts that the model writes for each question, greedily.

    It is shown three examples; what it writes is normalised, in its order.

    Args:
        checkpoint: hub id, directory or GGUF file of a causal language model.
        questions: scenario and query of each, normalised; of a completing one what was typed.
        scenarios: by name.
        kept: file of what was written. It takes long: what this checkpoint has written for these
            questions is not written anew, and after an interruption the rest is.
        report: called with how far it is.

    Raises:
        ValueError: the checkpoint cannot be loaded.
    """
    asked = _Asked(checkpoint, [(scenario, query) for scenario, query in questions])
    written = _read_kept(kept, asked)
    if len(written) < len(questions):
        _write(asked, scenarios, written, kept, report)
    return [
        items_of(written[i], query, completes_prefix=scenarios[scenario].completes_prefix)
        for i, (scenario, query) in enumerate(questions)
    ]


def _read_kept(kept: Path, asked: _Asked) -> dict[int, str]:
    """Returns what was written for the same questions; begins the file anew for others."""
    header = msgspec.json.encode(asked) + b"\n"
    content = kept.read_bytes() if kept.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]  # the last line may be torn
    if not whole.startswith(header):
        whole = header
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(kept.name + ".partial")
    partial.write_bytes(whole)
    partial.replace(kept)
    lines = whole.splitlines()[1:]
    return {w.question: w.text for w in (msgspec.json.decode(x, type=_Written) for x in lines)}


def _write(
    asked: _Asked,
    scenarios: dict[str, ScenarioSpec],
    written: dict[int, str],
    kept: Path,
    report: Callable[[str], None],
) -> None:
    """Has the checkpoint write what is missing, and keeps it after every batch."""
    tokenizer = read_tokenizer(asked.checkpoint).tokenizer
    has_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if has_gpu or has_fast_bf16() else torch.float32
    model = load_pretrained(AutoModelForCausalLM, asked.checkpoint, dtype=dtype).eval()
    model = model.to("cuda" if has_gpu else "cpu")
    prompts = [_prompt(scenarios[scenario], query) for scenario, query in asked.questions]
    ids = [e.ids for e in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    missing = [i for i in range(len(ids)) if i not in written]
    missing.sort(key=lambda i: len(ids[i]))
    for start in range(0, len(missing), _BATCH_SIZE):
        part = missing[start : start + _BATCH_SIZE]
        report(f"{asked.checkpoint} has written for {len(written)} of {len(ids)} questions")
        texts = _continued(model, tokenizer, [ids[i] for i in part])
        written.update(zip(part, texts, strict=True))
        lines = [msgspec.json.encode(_Written(i, t)) for i, t in zip(part, texts, strict=True)]
        with kept.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in lines))


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
    own = model.generation_config.eos_token_id  # one, several, or None
    ends = {i for token, i in tokenizer.get_vocab().items() if _EMPTY_LINE in token}
    ends |= set(own if isinstance(own, list) else [own]) - {None}
    width = max(map(len, prompts))
    ids_BL = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
    mask_BL = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device
    )
    output_BL = model.generate(
        input_ids=ids_BL,
        attention_mask=mask_BL,
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=list(ends) or None,
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
