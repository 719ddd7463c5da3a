"""Packs a training run into a bundle: builds the graphs, checks them, writes the manifest.

Nothing appears at the target unless every check passed.
"""

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import torch

from engine.execution.bundle import load_bundle
from engine.formats.features import FEATURE_NAMES
from engine.formats.index import GRAPH
from engine.formats.manifest import (
    MAX_CANDIDATE_TOKENS,
    ClickModelSpec,
    GeneratorSpec,
    IndexSpec,
    Manifest,
    ModelSpec,
    sha256_of,
)
from engine.formats.token_statistics import TOKEN_STATISTICS
from engine.formats.vocabulary import MAX_SLOTS
from engine.scheduling.planner import SCORED_SIZES
from export import click_parity, encoder_parity, parity
from export.calibration import activation_scales, within_range
from export.checkpoint import DecoderCheckpoint, Run, unchanged
from export.click_model import build_click_model
from export.decoder import Array
from export.encoder import build_encoder, quantise_encoder, to_fp16
from export.generator import build_generator
from export.options import Mode, Precision
from export.packing import packed, sealed
from export.requests import decoding, max_new_tokens, sample_requests
from train.stages import check_whole

_NUM_CALIBRATION = 96
_DTYPES = {1: "float32", 7: "int64"}

Report = Callable[[str], None]
Figures = dict[str, dict[str, float]]


def export_bundle(
    run_directory: Path,
    target: Path,
    *,
    mode: Mode | None = None,
    precision: Precision = "int8",
    num_parity_requests: int = 24,
    report: Report = lambda _: None,
) -> Manifest:
    """Writes a bundle directory from a training run and returns its manifest.

    Args:
        run_directory: what `queryrec-train` wrote.
        target: must not exist.
        mode: how the generator decodes; None: as it was taught.
        precision: of all graphs.
        num_parity_requests: sample requests for the comparison with torch; more is slower.
        report: called with a line of progress.

    Raises:
        ValueError: `target` exists, the run is incomplete or changes meanwhile, its parts do not
            belong together or cannot be used, or an architecture is unsupported.
        ParityError: a graph does not give what its reference gives.
    """
    with packed(target) as directory:
        with unchanged(run_directory):
            check_whole(run_directory)
            run = Run(run_directory)
            run.check_weights()
            mode = mode or run.taught_mode()
            if run.has("generator"):
                run.check_mode(mode)
            writer = _Writer(run, directory, precision, mode, num_parity_requests, report)
            manifest = writer.write()
        load_bundle(directory, None)  # what the engine refuses is no bundle
        return manifest


class _Writer:
    """Builds one bundle; methods add a part each."""

    def __init__(
        self, run: Run, directory: Path, precision: Precision, mode: Mode, num_parity: int,
        report: Report,
    ) -> None:  # fmt: skip
        self.run, self.directory, self.report = run, directory, report
        self.precision: Precision = precision
        self.mode: Mode = mode
        self.num_parity = num_parity
        self.parity: Figures = {}
        self.quality: dict[str, float] = {}

    def write(self) -> Manifest:
        run = self.run
        shutil.copyfile(run.directory / "tokenizer.json", self.directory / "tokenizer.json")
        encoder = self._encoder() if run.has("encoder") else None
        index = self._index(encoder) if encoder and run.has("index") else None
        generator = self._generator() if run.has("generator") else None
        click_model = self._click_model() if run.has("click_model") else None
        config = run.directory / "config.toml"
        manifest = Manifest(
            bundle_id="",
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            prompt=run.prompt,
            scenarios=run.scenarios,
            encoder=encoder,
            generator=generator,
            click_model=click_model,
            index=index,
            parity=self.parity,
            quality=self.quality,
            provenance={
                **run.weights_sha256(),
                "training_config_sha256": sha256_of(config) if config.is_file() else "",
                "torch": str(torch.__version__),
                "onnxruntime": ort.__version__,
            },
            files={},
        )
        return sealed(self.directory, manifest)

    def _encoder(self) -> ModelSpec:
        self.report("encoder: optimum export, comparison with torch")
        model = self.run.encoder()
        graph = build_encoder(model)
        rows = self._encoder_rows(seed=1)
        with within_range(model, self.precision):
            exact_ND, figures = encoder_parity.check_exact(parity.session_of(graph), model, rows)
        if self.precision != "fp32":
            samples: list[Mapping[str, Any]] = [
                {"input_ids": np.asarray([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
                for ids in self._encoder_rows(seed=7)
            ]
            graph = quantise_encoder(graph, samples) if self.precision == "int8" else to_fp16(graph)
            figures |= encoder_parity.check_reduced(
                parity.session_of(graph), self.precision, rows, exact_ND
            )
        self.parity["encoder"] = figures
        tokenizer = self.run.encoder_tokenizer
        if not (self.directory / tokenizer.name).exists():
            shutil.copyfile(tokenizer, self.directory / tokenizer.name)
        return msgspec.structs.replace(self._save(graph, "encoder"), tokenizer=tokenizer.name)

    def _encoder_rows(self, seed: int) -> list[list[int]]:
        """Returns the ids of sample queries."""
        requests = sample_requests(self.run, _NUM_CALIBRATION, seed=seed)
        return self.run.encoder_ids([r.query for r in requests])

    def _generator(self) -> GeneratorSpec:
        checkpoint = self.run.generator()
        longest = max_new_tokens(self.run, self.mode)
        tables = checkpoint.cos_sin(self.run.prompt.max_tokens + max(longest, MAX_SLOTS) + 8)
        build = partial(build_generator, checkpoint.state, checkpoint.shape, tables, mode=self.mode)
        exact = parity.session_of(build(with_logprobs=True))
        self.report(f"generator: {self.num_parity} requests against the torch reference")
        requests = sample_requests(self.run, self.num_parity, seed=2)
        with within_range(checkpoint.model, self.precision):
            self.parity["generator"] = parity.check_reference(
                exact, checkpoint, self.run, requests, self.mode
            )
        if self.precision == "int8":
            self.report("generator: int8 calibration")
            build = partial(build, activation_scales=self._generator_scales(checkpoint, exact))
        elif self.precision == "fp16":
            build = partial(build, real_type="float16")
        if self.precision != "fp32":
            self.report(f"generator: {self.precision} compared with fp32")
            reduced = parity.session_of(build(with_logprobs=True))
            several = sample_requests(self.run, 4 * self.num_parity, seed=3)
            name = f"generator_{self.precision}"
            if self.precision == "int8":
                self.parity[f"{name}_batching"] = parity.check_batch_invariance(
                    reduced, self.run, several, self.mode
                )
            self.parity[name] = parity.agreement(
                exact, reduced, checkpoint, self.run, several, self.mode
            )
            parity.check_agreement(self.parity[name], self.precision)
        # A search has the probabilities at hand; greedy choices would have to work them out.
        spec = self._save(build(with_logprobs=self.mode == "beam"), "generator")
        return GeneratorSpec(
            **msgspec.structs.asdict(spec),
            mode=self.mode,
            max_prompt_tokens=self.run.prompt.max_tokens,
            max_new_tokens=longest,
        )

    def _generator_scales(
        self, checkpoint: DecoderCheckpoint, exact: ort.InferenceSession
    ) -> dict[str, float | None]:
        """Measures activations on prompts with what the fp32 graph writes for them."""
        inputs: list[list[int]] = []
        for request in sample_requests(self.run, _NUM_CALIBRATION, seed=4):
            how = decoding(self.run, request.scenario, self.mode)
            generated = parity.generate(exact, [(request, how)])[0]
            inputs += [
                [*request.prompt.ids, slot, *ids]
                for slot, ids in zip(how.slots, generated.ids, strict=True)
            ]

        def run() -> None:
            for ids in inputs[:: max(1, len(inputs) // 200)]:
                checkpoint.model(torch.tensor([ids]))

        return activation_scales(checkpoint.model, run)

    def _click_model(self) -> ClickModelSpec:
        self.report("click model: comparison with torch")
        checkpoint, head = self.run.click_backbone(), self.run.click_head()
        if head["hidden.weight"].shape[1] != checkpoint.shape.hidden + len(FEATURE_NAMES):
            raise ValueError(
                f"{self.run.directory}/click_model: was trained on "
                f"{head['hidden.weight'].shape[1] - checkpoint.shape.hidden} features, this "
                f"release computes {len(FEATURE_NAMES)}: train it again"
            )
        most_tokens = SCORED_SIZES[0] * MAX_CANDIDATE_TOKENS  # of all candidates of a row
        tables = checkpoint.cos_sin(self.run.prompt.max_tokens + most_tokens)
        requests = sample_requests(self.run, self.num_parity, seed=5)
        features = click_parity.sample_features(head, requests, seed=6)
        with within_range(checkpoint.model, self.precision):
            expected = click_parity.click_reference(checkpoint, head, self.run, requests, features)
        build = partial(build_click_model, checkpoint.state, head, checkpoint.shape, tables)
        graph = build()
        session = parity.session_of(graph)
        got = click_parity.click_graph(session, self.run, requests, features)
        figures = click_parity.check_exact(got, expected)
        if self.precision != "fp32":
            if self.precision == "fp16":
                graph = build(real_type="float16")
            else:
                graph = build(activation_scales=self._click_scales(checkpoint, head))
            figures |= click_parity.check_reduced(
                parity.session_of(graph), self.precision, self.run, requests, features, expected
            )
        shutil.copy(
            self.run.directory / "click_model" / TOKEN_STATISTICS,
            self.directory / TOKEN_STATISTICS,
        )
        self.parity["click_model"] = figures
        self.quality |= {f"click_model_{k}": v for k, v in self.run.click_quality().items()}
        return ClickModelSpec(
            **msgspec.structs.asdict(self._save(graph, "click_model")),
            feature_names=list(FEATURE_NAMES),
            statistics=TOKEN_STATISTICS,
            calibration=self.run.calibration(),
            unknown_calibration=self.run.unknown_calibration(),
            max_candidate_tokens=MAX_CANDIDATE_TOKENS,
        )

    def _click_scales(
        self, checkpoint: DecoderCheckpoint, head: Mapping[str, Array]
    ) -> dict[str, float | None]:
        """Measures activations on requests of their own: parity is judged on others."""
        requests = sample_requests(self.run, _NUM_CALIBRATION, seed=8)
        features = click_parity.sample_features(head, requests, seed=9)
        return activation_scales(
            checkpoint.model,
            lambda: click_parity.click_reference(checkpoint, head, self.run, requests, features),
        )

    def _index(self, encoder: ModelSpec) -> IndexSpec:
        self.report("index: copying")
        spec = self.run.index_spec()
        source, target = self.run.directory / "index", self.directory / spec.directory
        target.mkdir()
        for path in (source / GRAPH, source / "texts.bin", *source.glob("*.npy")):
            shutil.copyfile(path, target / path.name)
        encoder_hash = sha256_of(self.directory / encoder.file)
        return msgspec.structs.replace(
            spec, encoder_sha256=encoder_hash, association=self.run.association()
        )

    def _save(self, graph: onnx.ModelProto, name: str) -> ModelSpec:
        path = self.directory / f"{name}.onnx"
        path.write_bytes(graph.SerializeToString())
        return ModelSpec(
            file=path.name,
            precision=self.precision,
            inputs={i.name: _signature(i) for i in graph.graph.input},
            outputs={o.name: _signature(o) for o in graph.graph.output},
        )


def _signature(info: onnx.ValueInfoProto) -> list[str | int]:
    """Returns the element type and the dimensions of a graph input or output."""
    tensor = info.type.tensor_type
    return [_DTYPES[tensor.elem_type], *(d.dim_param or d.dim_value for d in tensor.shape.dim)]
