"""Supervised fine-tuning of the generator on the universal prompt, loss on the response only.

Knows nothing of how examples are chosen (`examples`) or laid out (`responses`).
"""

# B batch, L packed tokens, N tokens to predict, D model dim, V vocab
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, set_seed

from engine.formats.manifest import PromptSpec, ScenarioSpec
from engine.formats.prompt import PromptRenderer
from engine.formats.vocabulary import Vocabulary
from train.generation.associations import Associations
from train.generation.examples import ExampleConfig, ExampleMaker, Source, read_clicks, read_sources
from train.generation.responses import ResponseEncoder, Responses, to_batch
from train.generation.taught import examine
from train.mining.mine import PROMPT, SCENARIOS
from train.models.backbone import Shape, llama_config
from train.models.pace import PacedTrainer, trainer_arguments
from train.models.shared_prefix import IGNORED_LABEL, Packed
from train.settings import GeneratorConfig, IndexConfig

METRICS = "metrics.json"
_MAX_VALID = 400  # examples per scenario that the validation loss is measured on


class GeneratorMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """How a training went."""

    mode: str  # the forms that were taught, see `train.generation.responses`
    num_parameters: int
    num_sources: int
    num_steps: int
    num_examples: int
    num_tokens: int  # prompts and responses, without padding
    train_s: float  # of this process; less than the whole if the training was resumed
    tokens_per_s: float
    stopped_by_time: bool
    train_loss: float  # nats per token, mean over the last steps
    # scenario -> nats per token of what held-out users wanted, auxiliary texts included; no entry
    # without examples
    valid_loss: dict[str, float]
    # scenario -> share of what was to be taught that fits max_new_tokens; no entry without any
    fitting: dict[str, float]


class ResponseLoss(nn.Module):
    """A causal model whose output is the loss on the response tokens.

    The head is applied to the positions that have a label and to no others: with prompts as long
    as responses that halves its cost.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Wraps a *ForCausalLM model."""
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Returns the mean loss in nats per label as "loss"; arguments as responses.Batch."""
        hidden_BLD = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        has_label_BL = labels != IGNORED_LABEL
        head = self.model.get_output_embeddings()
        assert head is not None, "causal models have a head"
        logits_NV = head(hidden_BLD[has_label_BL])
        return {"loss": F.cross_entropy(logits_NV.float(), labels[has_label_BL])}


class RunPrompts(msgspec.Struct, frozen=True):
    """The prompt renderer of a run and what it was made from."""

    scenarios: list[ScenarioSpec]
    prompt: PromptSpec
    renderer: PromptRenderer


def read_prompts(run: Path) -> RunPrompts:
    """Reads vocabulary, scenarios and prompt specification of a run directory."""
    mined = run / "mined"
    scenarios = msgspec.json.decode((mined / SCENARIOS).read_bytes(), type=list[ScenarioSpec])
    prompt = msgspec.json.decode((mined / PROMPT).read_bytes(), type=PromptSpec)
    vocabulary = Vocabulary.load(run / "tokenizer.json")
    return RunPrompts(scenarios, prompt, PromptRenderer(vocabulary, prompt, scenarios))


def example_maker(
    mined: Path, config: GeneratorConfig, prompts: RunPrompts, *, max_edges: int
) -> ExampleMaker:
    """Returns what makes examples from the log as it was known before the validation cut."""
    example_config = ExampleConfig(
        scenarios=prompts.scenarios,
        prompt=prompts.prompt,
        cold_share=config.cold_share,
        max_contexts_per_query=config.max_contexts_per_query,
        samples_completions=config.mode == "beam",
    )
    clicks = read_clicks(mined, "train", prompts.scenarios)
    associations = Associations.load(mined, clicks, max_edges=max_edges, only_training=True)
    return ExampleMaker(example_config, associations)


def train_generator(
    run: Path,
    config: GeneratorConfig,
    *,
    shape: Shape,
    seed: int,
    output: Path,
    max_edges: int = IndexConfig().max_edges,
    model: PreTrainedModel | None = None,
    teacher: Sequence[Source] = (),
    report: Callable[[str], None] = print,
) -> GeneratorMetrics:
    """Trains on `run`/mined and writes the model and metrics.json into `output`.

    A call that was interrupted goes on from its last checkpoint in `output`.

    Args:
        run: run directory with mined/ and tokenizer.json.
        config: how to train.
        shape: of a new model; not used where `model` is given.
        seed: of weights, examples and their order.
        output: directory.
        max_edges: of the index that will be served.
        model: to start from; its vocabulary must be the run's.
        teacher: what to learn beside the log, see `train.generation.teacher`.
        report: called with how far the training is, and with what nothing, or little, teaches.

    Raises:
        ValueError: nothing was mined to train on.
    """
    set_seed(seed)
    prompts = read_prompts(run)
    if model is None:
        model = LlamaForCausalLM(llama_config(shape, prompts.renderer.vocabulary.size))
    if not torch.cuda.is_available():
        # On CPU the fused attention's backward pass in bfloat16 is slow: 6,500 tokens/s against
        # 12,000 (demo size, one core of an EPYC with AVX512-BF16, torch 2.13); equal in float32.
        model.set_attn_implementation("eager")
    mined = run / "mined"
    maker = example_maker(mined, config, prompts, max_edges=max_edges)
    encoder = ResponseEncoder(prompts.renderer, prompts.scenarios, config.mode)

    def make(source: Source, rng: random.Random) -> Packed | None:
        example = maker(source, rng)
        return None if example is None else encoder(example, rng)

    def make_held_out(source: Source, rng: random.Random) -> Packed | None:
        # What else an example holds is known from the training split.
        example = maker(source, rng)
        return None if example is None else encoder(example, rng, only=source.wanted)

    sources = read_sources(mined, maker.config, "train", seed, further=teacher)
    taught = examine(sources, prompts.scenarios, maker, encoder, config.mode, report)
    dataset = Responses(
        sources,
        make,
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        seed=seed,
        share=taught.share or 1.0,  # where nothing fits, the first example says so
    )
    arguments = trainer_arguments(
        output / "checkpoints",
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        seed=seed,
        checkpoint_steps=config.checkpoint_steps,
    )
    arguments.save_safetensors = False  # it refuses tied embeddings inside a wrapper
    counter = _CountingCollator()
    trainer = PacedTrainer(
        model=ResponseLoss(model),
        args=arguments,
        train_dataset=dataset,
        data_collator=counter,
        max_train_s=config.max_train_s,
        warmup_share=config.warmup_share,
        matrix_learning_rate=config.matrix_learning_rate,
        report=report,
    )
    started_s = time.monotonic()
    trainer.train_resumable()
    train_s = time.monotonic() - started_s
    valid = read_sources(mined, maker.config, "valid", seed)
    metrics = GeneratorMetrics(
        mode=config.mode,
        num_parameters=model.num_parameters(),
        num_sources=len(sources),
        num_steps=trainer.state.global_step,
        num_examples=trainer.state.global_step * config.batch_size,
        num_tokens=counter.num_tokens,
        train_s=round(train_s, 2),
        tokens_per_s=round(counter.num_tokens / train_s, 1),
        stopped_by_time=trainer.state.global_step < trainer.state.max_steps,
        train_loss=_last_loss(trainer),
        valid_loss=_valid_losses(
            trainer.model, valid, make_held_out, prompts.scenarios, config.batch_size
        ),
        fitting=taught.fitting,
    )
    if trainer.is_world_process_zero():
        model.save_pretrained(output)
        (output / METRICS).write_bytes(msgspec.json.format(msgspec.json.encode(metrics)))
    trainer.remove_checkpoints()
    return metrics


class _CountingCollator:
    """Makes batches and counts their tokens."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def __call__(self, packed: Sequence[Packed]) -> dict[str, Tensor]:
        self.num_tokens += sum(len(p.input_ids) for p in packed)
        return to_batch(packed)


def _last_loss(trainer: PacedTrainer) -> float:
    history = trainer.state.log_history
    losses: list[float] = [e[name] for name in ("train_loss", "loss") for e in history if name in e]
    return losses[-1]


@torch.inference_mode()
def _valid_losses(
    model: Any,
    sources: Sequence[Source],
    make: Any,
    scenarios: Sequence[ScenarioSpec],
    batch_size: int,
) -> dict[str, float]:
    """Returns the loss per scenario over all labels of up to 400 packed validation examples."""
    model.eval()
    device = next(model.parameters()).device
    losses: dict[str, float] = {}
    for spec in scenarios:
        rng = random.Random(0)
        made = (make(s, rng) for s in sources if s.scenario == spec.name)
        packed = [p for _, p in zip(range(_MAX_VALID), (p for p in made if p), strict=False)]
        packed.sort(key=lambda p: len(p.input_ids))
        total, num_labels = 0.0, 0
        for first in range(0, len(packed), batch_size):
            batch = to_batch(packed[first : first + batch_size])
            count = int((batch["labels"] != IGNORED_LABEL).sum())
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            total += float(model(**moved)["loss"]) * count
            num_labels += count
        if num_labels:
            losses[spec.name] = round(total / num_labels, 4)
    return losses
