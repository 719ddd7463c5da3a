"""What is taken from a numbered list that a language model wrote, and what is kept of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.formats.manifest import ScenarioSpec
from train.generation import prompting
from train.generation.prompting import items_of, prompted_texts

SCENARIOS = {"suggestion": ScenarioSpec(name="suggestion", description="", position_ctr=[1.0])}
QUESTIONS = [("suggestion", q) for q in ("garden chair", "usb hub", "red hat")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of random weights that reads and writes bytes."""
    directory = tmp_path_factory.mktemp("checkpoint")
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=1024, eos_token_id=255,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


def texts(checkpoint: str, kept: Path) -> list[list[str]]:
    return prompted_texts(checkpoint, QUESTIONS, SCENARIOS, kept=kept, report=lambda _: None)


def test_what_was_written_before_an_interruption_is_not_written_again(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompting, "_BATCH_SIZE", 1)
    monkeypatch.setattr(prompting, "_MAX_NEW_TOKENS", 8)
    calls: list[list[int]] = []
    limit = 2
    write = prompting._continued

    def until_killed(model: Any, tokenizer: Tokenizer, prompts: list[list[int]]) -> list[str]:
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.extend(prompts)
        return write(model, tokenizer, prompts)

    monkeypatch.setattr(prompting, "_continued", until_killed)
    with pytest.raises(KeyboardInterrupt):
        texts(checkpoint, tmp_path / "kept")
    limit = 99
    with (tmp_path / "kept").open("ab") as file:
        file.write(b'[2,"1. to')  # torn by the interruption
    found = texts(checkpoint, tmp_path / "kept")
    assert len(calls) == len(QUESTIONS), "each question once"
    assert len(found) == len(QUESTIONS)
    assert found == texts(checkpoint, tmp_path / "other")
    assert found == texts(checkpoint, tmp_path / "kept")
    assert len(calls) == 2 * len(QUESTIONS), "nothing for what was kept"


def test_a_checkpoint_without_an_end_token_writes_too(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompting, "_MAX_NEW_TOKENS", 8)
    endless = shutil.copytree(checkpoint, tmp_path / "endless")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((endless / name).read_text())
        (endless / name).write_text(json.dumps({**settings, "eos_token_id": None}))
    assert len(texts(str(endless), tmp_path / "kept")) == len(QUESTIONS)


def test_what_was_written_for_other_questions_is_not_taken(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompting, "_continued", lambda *_: ["1. one"] * len(QUESTIONS))
    assert texts(checkpoint, tmp_path / "kept") == [["one"]] * len(QUESTIONS)
    monkeypatch.setattr(prompting, "_continued", lambda *_: ["1. two"])
    others = [("suggestion", "bread")]
    found = prompted_texts(
        checkpoint, others, SCENARIOS, kept=tmp_path / "kept", report=lambda _: None
    )
    assert found == [["two"]]


def test_items_are_distinct_normalised_and_not_the_query() -> None:
    written = "1. Garden  Chairs\n2) garden table\nand more\n3. garden tables.\n4. garden table\n5."
    found = items_of(written, "garden chairs", completes_prefix=False)
    assert found == ["garden table", "garden tables."]


def test_completions_start_with_what_was_typed() -> None:
    written = "1. garden chairs\n2. a garden\n3. garden ch\n4. garden chest"
    found = items_of(written, "garden ch", completes_prefix=True)
    assert found == ["garden chairs", "garden chest"]


def test_nothing_written_is_an_empty_list() -> None:
    assert items_of("1.", "x", completes_prefix=False) == []
