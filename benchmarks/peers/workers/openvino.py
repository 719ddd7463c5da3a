"""OpenVINO: GenAI's paged attention, and the plain runtime with a stateful model.

Options: `precision` fp32, int8 or int4 (weights), static (int8 weights and activations);
`sharing` is how the suggestions of a prompt share its keys and values:

    parallel  one request a prompt, several sequences sampled from it
    beams     one request a prompt, one group of beams a suggestion
    search    one request a prompt, one beam search as wide as the suggestions
    cache     prompts first, then every suggestion as a request that finds its prompt cached
    state     no GenAI: the runtime's state is spread over the suggestions by `beam_idx`

`kv` and `hint` are the precisions of cache and arithmetic, "default" leaves them to OpenVINO.
Knows nothing of the other peers.
"""

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.protocol import Lists, Task, serve

# These are only in the peer's environment.
ov: Any = importlib.import_module("openvino")
genai: Any = importlib.import_module("openvino_genai")

_XML = "openvino_model.xml"


def prepare(task: Task) -> Path:
    """Returns the directory of the model in the variant's precision."""
    return task.converted(task.options["precision"], lambda target: _convert(task, target))


def _convert(task: Task, target: Path) -> None:
    precision = task.options["precision"]
    if precision == "fp32":
        _export(task.model / "checkpoint", target)
        return
    nncf: Any = importlib.import_module("nncf")
    source = task.converted("fp32", lambda path: _export(task.model / "checkpoint", path))
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=_graphs)
    model = ov.Core().read_model(source / _XML)
    if precision == "int8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    elif precision == "int4":
        model = nncf.compress_weights(
            model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64, all_layers=False
        )
    else:
        model = nncf.quantize(
            model,
            nncf.Dataset(_samples(model)),
            subset_size=8,
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,
        )
    ov.save_model(model, target / _XML, compress_to_fp16=False)


def _graphs(_: str, names: list[str]) -> list[str]:
    return [n for n in names if n.startswith("openvino_model.")]


def _export(checkpoint: Path, target: Path) -> None:
    model = importlib.import_module("optimum.intel").OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, load_in_8bit=False
    )
    model.save_pretrained(target)
    # Once more by hand: never rounded to 16 bits.
    graph = model.model
    for path in target.glob("openvino_model.*"):
        path.unlink()
    ov.save_model(graph, target / _XML, compress_to_fp16=False)
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.save_pretrained(target)
    converters = importlib.import_module("openvino_tokenizers")
    parts = converters.convert_tokenizer(tokenizer, with_detokenizer=True)
    for part, name in zip(parts, ("openvino_tokenizer", "openvino_detokenizer"), strict=True):
        ov.save_model(part, target / f"{name}.xml")


def _samples(model: Any) -> list[dict[str, Any]]:
    """Returns calibration inputs: random prompts, like those of the contest."""
    rng = np.random.default_rng(1)
    embedding = next(
        n for n in model.get_ops() if n.get_type_name() == "Constant" and len(n.shape) == 2
    )
    vocabulary = max(embedding.shape)
    return [
        {
            "input_ids": rng.integers(130, vocabulary, (1, 64)),
            "attention_mask": np.ones((1, 64), np.int64),
            "position_ids": np.arange(64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        for _ in range(8)
    ]


def _properties(task: Task) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": task.num_threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if task.options.get("kv", "default") != "default":
        properties["KV_CACHE_PRECISION"] = task.options["kv"]
    if task.options.get("hint", "default") != "default":
        properties["INFERENCE_PRECISION_HINT"] = task.options["hint"]
    return properties


class Paged:
    """GenAI's continuous batching."""

    def __init__(self, task: Task) -> None:
        self._sharing = task.options["sharing"]
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_batched_tokens = 1 << 14
        scheduler.max_num_seqs = 256
        scheduler.dynamic_split_fuse = False
        scheduler.enable_prefix_caching = self._sharing == "cache"
        directory = str(prepare(task))
        self._pipe = genai.ContinuousBatchingPipeline(
            directory, scheduler, "CPU", _properties(task)
        )
        self.settings = {
            "openvino-genai": genai.__version__,
            "openvino": ov.get_version(),
            "hint": "",
        }
        model = ov.Core().compile_model(str(Path(directory) / _XML), "CPU", _properties(task))
        self.settings["hint"] = str(model.get_property("INFERENCE_PRECISION_HINT"))

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        config = self._config(num_new)
        if self._sharing == "cache":
            return self.greedy(prompts, starts, num_new)
        config.num_return_sequences = len(starts)
        if self._sharing == "parallel":
            config.do_sample = True
            config.top_k = 50
        elif self._sharing == "search":
            config.num_beams = len(starts)
        else:
            config.num_beams = config.num_beam_groups = len(starts)
            config.diversity_penalty = 1.0
        results = self._pipe.generate(
            [ov.Tensor(np.asarray([p])) for p in prompts], [config] * len(prompts)
        )
        return [[list(ids) for ids in r.m_generation_ids] for r in results]

    def greedy(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        if self._sharing == "cache":
            first = self._config(1)
            self._pipe.generate(
                [ov.Tensor(np.asarray([p])) for p in prompts], [first] * len(prompts)
            )
        requests = [ov.Tensor(np.asarray([[*p, s]])) for p in prompts for s in starts]
        results = self._pipe.generate(requests, [self._config(num_new)] * len(requests))
        flat = [list(r.m_generation_ids[0]) for r in results]
        return [flat[i : i + len(starts)] for i in range(0, len(flat), len(starts))]

    def _config(self, num_new: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = num_new
        config.ignore_eos = True
        return config


class Stateful:
    """The plain runtime: a greedy loop in Python over a model that keeps its own state."""

    def __init__(self, task: Task) -> None:
        core = ov.Core()
        model = core.read_model(prepare(task) / _XML)
        _keep_last_logits(model)
        compiled = core.compile_model(model, "CPU", _properties(task))
        self._request = compiled.create_infer_request()
        self.settings = {
            "openvino": ov.get_version(),
            "hint": str(compiled.get_property("INFERENCE_PRECISION_HINT")),
        }

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        num_prompts, num_starts, length = len(prompts), len(starts), len(prompts[0])
        self._request.reset_state()
        self._step(np.asarray(prompts), 0, np.arange(num_prompts))
        beam = np.repeat(np.arange(num_prompts), num_starts)
        tokens = np.tile(np.asarray(starts), num_prompts)
        new = np.empty((len(tokens), num_new), np.int64)
        for step in range(num_new):
            logits = self._step(tokens[:, None], length + step, beam)
            tokens = new[:, step] = logits[:, -1].argmax(-1)
            beam = np.arange(len(tokens))
        return new.reshape(num_prompts, num_starts, num_new).tolist()

    greedy = generate

    def _step(self, ids: Any, past: int, beam: Any) -> Any:
        num_rows, num_new = ids.shape
        positions = np.broadcast_to(np.arange(past, past + num_new), ids.shape)
        self._request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones((num_rows, past + num_new), np.int64),
                "position_ids": positions,
                "beam_idx": beam.astype(np.int32),
            },
            share_inputs=False,
        )
        return self._request.get_tensor("logits").data


def _keep_last_logits(model: Any) -> None:
    """Multiplies only the last position by the vocabulary, as GenAI does too."""
    ops = importlib.import_module("openvino.opset13")
    node = model.output("logits").get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    kept = ops.slice(node.input_value(0), np.array([-1]), np.array([1 << 30]), np.array([1]), [1])
    node.input(0).replace_source_output(kept.output(0))
    model.validate_nodes_and_infer_types()


def load(task: Task) -> Paged | Stateful:
    """Returns the variant's contender."""
    return Stateful(task) if task.options["sharing"] == "state" else Paged(task)


if __name__ == "__main__":
    serve(load, prepare)
