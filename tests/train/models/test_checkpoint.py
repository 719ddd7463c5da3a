import os
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.formats.vocabulary import FIRST_TEXT_ID, Vocabulary, scenario_token
from train.models.backbone import llama_config, shapes_of
from train.models.checkpoint import load_rearranged, read_tokenizer
from train.models.tokenizer import arrange

SYLLABLES = ["lap", "top", "gam", "ing", "char", "ger", "cof", "fee", "grin", "der", "shoe", "run"]
TEXTS = [f"{a} {b}" for a in SYLLABLES for b in SYLLABLES]
LONG_TEXTS = [f"{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with a tokenizer as public checkpoints have them."""
    directory = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())[:250],  # six bytes missing
    )
    tokenizer.train_from_iterator((" " + t for t in TEXTS * 20 + LONG_TEXTS), trainer)
    assert tokenizer.get_vocab_size() == 512
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|endoftext|>", "<|im_start|>"],
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = llama_config(shapes_of("tiny").generator, 512)
    config.tie_word_embeddings = request.param
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@torch.inference_mode()
def assert_same_logits(checkpoint: str, texts: list[str], **options: str) -> None:
    source = read_tokenizer(checkpoint)
    place = str(Path(checkpoint).parent) if options else checkpoint
    before = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
    after, vocabulary = load_rearranged(checkpoint, scenarios=["suggestion"], kinds=["session"])
    old_ids = arrange(
        source.tokenizer, size=source.size, scenarios=["suggestion"], kinds=["session"]
    ).old_ids
    assert vocabulary.size == source.size == after.get_input_embeddings().num_embeddings
    kept = [i for i, old in enumerate(old_ids) if old is not None]
    kept_old = [i for i in old_ids if i is not None]
    num_compared = 0
    for text in texts:
        ids = vocabulary.encode(text)
        ids_before = source.tokenizer.encode(" " + text, add_special_tokens=False).ids
        if [old_ids[i] for i in ids] != ids_before:
            continue  # a token of it has gone
        num_compared += 1
        logits = after(torch.tensor([ids])).logits[..., kept]
        expected = before(torch.tensor([ids_before])).logits[..., kept_old]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert num_compared > len(texts) / 3


def test_rearranged_model_gives_the_same_logits(checkpoint: Path) -> None:
    assert_same_logits(str(checkpoint), TEXTS)


def test_vocabulary_follows_the_layout_and_new_rows_differ(checkpoint: Path) -> None:
    model, vocabulary = load_rearranged(
        str(checkpoint), scenarios=["suggestion"], kinds=["session"]
    )
    assert vocabulary.size % 128 == 0
    assert all(vocabulary.id_of_bytes(bytes([b])) >= FIRST_TEXT_ID for b in range(256))
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    rows = embedding.weight[:FIRST_TEXT_ID]
    assert len(torch.unique(rows, dim=0)) == FIRST_TEXT_ID
    assert rows.std(0).mean() < embedding.weight.std(0).mean()
    assert vocabulary.decode(vocabulary.encode("<|im_start|>")) == "<|im_start|>"


def test_a_rearranged_model_survives_saving(checkpoint: Path, tmp_path: Path) -> None:
    model, vocabulary = load_rearranged(str(checkpoint), scenarios=["a"], kinds=[])
    model.save_pretrained(tmp_path / "model")
    vocabulary.save(tmp_path / "tokenizer.json")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([[Vocabulary.load(tmp_path / "tokenizer.json").control_id(
        scenario_token("a")), *vocabulary.encode(TEXTS[0])]])  # fmt: skip
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.gguf cannot be loaded"):
        read_tokenizer(str(tmp_path / "absent.gguf"))


def test_a_checkpoint_whose_weights_are_damaged_is_named(checkpoint: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"damaged cannot be loaded: .*not fully covered"):
        load_rearranged(str(damaged), scenarios=["a"], kinds=[])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smollm2_gives_the_same_logits_in_the_new_order() -> None:
    place = os.environ.get("SMOLLM2_DIR")
    if not place:
        pytest.skip("SMOLLM2_DIR names no directory with SmolLM2-135M-Instruct")
    files = sorted(Path(place).glob("*.gguf"))
    texts = ["wireless earbuds for running under $50", "best laptop 2024", "coffee grinder"]
    if files:
        assert_same_logits(str(files[0]), texts, gguf_file=files[0].name)
    else:
        assert_same_logits(place, texts)
