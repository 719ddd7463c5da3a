"""Reads what training wrote: a run directory with checkpoints. Knows nothing of ONNX."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForCausalLM

from engine.formats.index import GRAPH
from engine.formats.manifest import IndexSpec, PromptSpec, ScenarioSpec, sha256_of
from engine.formats.prompt import PromptRenderer
from engine.formats.vocabulary import Vocabulary
from export.decoder import Array
from export.generator import Mode, rotary_tables
from train.clicks.calibration import EXAMINATION, read_examination
from train.generation.decoder import DecoderShape
from train.mining.mine import SUMMARY, read_summary
from train.models.trained import load_trained
from train.retrieval.encoder import Encoder, encoder_tokenizer
from train.stages import records_of

T = TypeVar("T")
_MODELS = ("encoder", "click_model")  # and the generator, see `Run.generator_directory`
_MAX_BYTES = 2**31 - 2**24  # of protobuf, with room for the nodes and tables of positions
_UNCALIBRATED = (1.0, 0.0)  # slope and intercept of a scenario without held-out impressions


@contextmanager
def unchanged(run: Path) -> Iterator[None]:
    """Checks at the end that training has not replaced a part of a run directory meanwhile.

    Raises:
        ValueError: it has, so what was read may be of two trainings.
    """
    before = records_of(run)
    yield
    if records_of(run) != before:
        raise ValueError(
            f"{run}: queryrec-train has replaced parts of it that were being read; wait until it "
            "has ended, then export again"
        )


class DecoderCheckpoint(NamedTuple):
    """A causal transformer, ready to be built into a graph."""

    model: Any  # the transformers model, float32, in eval mode
    shape: DecoderShape
    state: dict[str, Array]  # names without the leading "model."

    def cos_sin(self, num_positions: int) -> tuple[Array, Array]:
        """Returns the rotary tables for positions 0 to num_positions - 1."""
        rotary = getattr(self.model, "model", self.model).rotary_emb
        inverse = rotary.inv_freq.float().numpy()
        return rotary_tables(inverse, num_positions, float(rotary.attention_scaling))


class Run:
    """A run directory of `queryrec-train`; parts are read when first used."""

    def __init__(self, directory: Path) -> None:
        """Opens a run directory.

        Raises:
            ValueError: a part that every bundle needs is missing.
        """
        self.directory = directory
        for name in ("mined/scenarios.json", "mined/prompt.json", "tokenizer.json"):
            if not (directory / name).is_file():
                raise ValueError(
                    f"{directory}: has no {name}; run `queryrec-train run` to the end first"
                )

    @cached_property
    def scenarios(self) -> list[ScenarioSpec]:
        """The panels that the models were trained for.

        Where there is a click model, positions are worth what its training found that they are
        looked at: click rates by position would count twice that a policy puts the best first.
        A panel that it was calibrated for, but not trained on, was taken for seen everywhere.
        """
        specs = _read_json(self.directory / "mined/scenarios.json", list[ScenarioSpec])
        seen: dict[str, list[float]] = {}
        if (self.directory / EXAMINATION).is_file():
            calibrations = [*self.calibration().items(), *self.unknown_calibration().items()]
            seen = {name: [1.0] for name, platt in calibrations if platt != _UNCALIBRATED}
            seen |= read_examination(self.directory)
        return [
            msgspec.structs.replace(s, position_ctr=seen.get(s.name, s.position_ctr)) for s in specs
        ]

    @cached_property
    def prompt(self) -> PromptSpec:
        """Prompt rendering."""
        return _read_json(self.directory / "mined/prompt.json", PromptSpec)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer of all models."""
        return Vocabulary.load(self.directory / "tokenizer.json")

    @cached_property
    def renderer(self) -> PromptRenderer:
        """Renders prompts as the engine will."""
        return PromptRenderer(self.vocabulary, self.prompt, self.scenarios)

    @cached_property
    def queries(self) -> list[str]:
        """The k-anonymous queries of the log."""
        return pq.read_table(self.directory / "mined/queries.parquet")["text"].to_pylist()

    def has(self, part: str) -> bool:
        """Returns whether training wrote a part: encoder, generator, click_model or index."""
        return (self.directory / part).is_dir()

    def check_weights(self) -> None:
        """Checks models before one is run: files that are whole, and small enough for ONNX.

        Raises:
            ValueError: a file of weights is damaged, or a model is too large.
        """
        for directory in self._model_directories():
            num_bytes = 4 * sum(_num_weights(path) for path in directory.glob("*.safetensors"))
            if num_bytes > _MAX_BYTES:
                raise ValueError(
                    f"{directory}: has {num_bytes / 2**30:.1f} GiB of weights in float32, from "
                    "which all graphs are made; an ONNX file takes up to 2 GiB: train a smaller one"
                )

    def weights_sha256(self) -> dict[str, str]:
        """Returns file of weights, relative to the run -> sha256, of the models that are exported.

        By these `train.evaluation.origin` tells whether a bundle is of a run.
        """
        files = [f for d in self._model_directories() for f in sorted(d.glob("*.safetensors"))]
        return {f.relative_to(self.directory).as_posix(): sha256_of(f) for f in files}

    @property
    def generator_directory(self) -> Path:
        """Where the generator is: aligned if it was, else as fine-tuned."""
        aligned = self.directory / "aligned"
        return aligned if aligned.is_dir() else self.directory / "generator"

    def _model_directories(self) -> list[Path]:
        return [*map(self.directory.joinpath, _MODELS), self.generator_directory]

    def encoder(self) -> Any:
        """Loads the encoder's transformer in float32."""
        return load_trained(AutoModel, self.directory / "encoder", add_pooling_layer=False)

    def encoder_ids(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids that the encoder reads for texts; its tokenizer may be its own."""
        return Encoder.load(self.directory).token_ids(texts)

    @property
    def encoder_tokenizer(self) -> Path:
        """File of the encoder's tokenizer; its name is that in the bundle."""
        return encoder_tokenizer(self.directory)

    def generator(self) -> DecoderCheckpoint:
        """Loads the generator in float32."""
        model = load_trained(AutoModelForCausalLM, self.generator_directory)
        checkpoint = decoder_checkpoint(model)
        if checkpoint.shape.vocabulary != self.vocabulary.size:
            raise ValueError(
                f"{self.generator_directory}: has {checkpoint.shape.vocabulary} token embeddings, "
                f"the tokenizer {self.vocabulary.size}: they are not of one training run"
            )
        return checkpoint

    def click_backbone(self) -> DecoderCheckpoint:
        """Loads the click model's backbone in float32."""
        return decoder_checkpoint(load_trained(AutoModel, self.directory / "click_model"))

    def click_head(self) -> dict[str, Array]:
        """Loads the click model's head: "hidden.weight" and so on."""
        arrays = load_file(self.directory / "click_model/head.safetensors")
        return {n.removeprefix("head."): a.astype(np.float32) for n, a in arrays.items()}

    def calibration(self) -> dict[str, tuple[float, float]]:
        """Loads the calibration of the click logit per scenario."""
        return _read_json(
            self.directory / "click_model/calibration.json", dict[str, tuple[float, float]]
        )

    def unknown_calibration(self) -> dict[str, tuple[float, float]]:
        """Loads the same for texts that the log does not know; empty if they have none."""
        path = self.directory / "click_model/unknown_calibration.json"
        return _read_json(path, dict[str, tuple[float, float]]) if path.is_file() else {}

    def index_spec(self) -> IndexSpec:
        """Loads the description of the index.

        Raises:
            ValueError: the index is of an older release, or of another encoder.
        """
        index = self.directory / "index"
        again = "build it again with `queryrec-train index`"
        if not (index / GRAPH).is_file():
            raise ValueError(f"{index}: has no {GRAPH}; {again}")
        spec = _read_json(index / "index.json", IndexSpec)
        if spec.encoder_sha256 != sha256_of(self.directory / "encoder/model.safetensors"):
            raise ValueError(f"{index}: was embedded by another encoder than the run's; {again}")
        return spec

    def association(self) -> str | None:
        """Returns how strongly pairs belong together was measured; None: nothing says it."""
        is_mined = (self.directory / "mined" / SUMMARY).is_file()
        return read_summary(self.directory).association if is_mined else None

    def taught_mode(self) -> Mode:
        """Returns the decoding mode that the generator was taught; the first of several."""
        taught = self._taught() or "slots"
        return "slots" if taught == "both" else taught

    def check_mode(self, mode: str) -> None:
        """Checks that the generator was taught the form of a decoding mode.

        Raises:
            ValueError: it was taught another one.
        """
        taught = self._taught() or mode
        if taught != mode and (taught != "both" or mode == "beam"):
            raise ValueError(
                f"{self.directory}/generator: was trained with generator.mode {taught!r}, asked "
                f"for is {mode!r}: export with --mode {self.taught_mode()} or train again"
            )

    def _taught(self) -> Any:
        path = self.directory / "generator/metrics.json"
        return json.loads(path.read_text()).get("mode") if path.is_file() else None

    def click_quality(self) -> dict[str, float]:
        """Returns what training measured of the click model on all held-out impressions."""
        path = self.directory / "click_model/metrics.json"
        measured = json.loads(path.read_text())["all"]["model"] if path.is_file() else {}
        return {k: float(v) for k, v in measured.items() if v is not None}  # null: undefined


def _read_json(path: Path, kind: type[T]) -> T:
    """Reads a file of JSON.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error


def _num_weights(path: Path) -> int:
    """Returns how many numbers a file of weights holds.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, "numpy") as file:
            return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: weights cannot be read: {error}") from error


def decoder_checkpoint(model: Any) -> DecoderCheckpoint:
    """Returns a causal transformers model with what its graph is built from.

    Raises:
        ValueError: the architecture is not supported.
    """
    model = model.eval()
    shape = DecoderShape.of(model.config)
    tied = bool(model.config.tie_word_embeddings)
    state = {
        name.removeprefix("model."): tensor.float().numpy()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    return DecoderCheckpoint(model, shape, state)
