"""Optimum's ORTModelForCausalLM. Knows nothing of the other peers.

Options: `precision` fp32 or int8 (dynamic); `sharing` none (its own `generate`, every suggestion
reads its prompt anew), prefill (prompts read once, their keys and values repeated, then a
greedy loop over its `forward`) or search (its own `generate`, one beam search a prompt, as wide as
the suggestions).
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForCausalLM

from benchmarks.peers.protocol import Lists, Task, serve


def prepare(task: Task) -> Path:
    """Returns the directory of the model in the variant's precision."""

    def export(target: Path) -> None:
        main_export(
            str(task.model / "checkpoint"),
            output=target,
            task="text-generation-with-past",
            do_validation=False,
            no_dynamic_axes=False,
        )

    if task.options["precision"] == "fp32":
        return task.converted("fp32", export)

    def quantise(target: Path) -> None:
        source = task.converted("fp32", export)
        for name in ("config.json", "generation_config.json"):
            (target / name).write_bytes((source / name).read_bytes())
        quantize_dynamic(
            source / "model.onnx",
            target / "model.onnx",
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            extra_options={"MatMulConstBOnly": True},
        )

    return task.converted("int8", quantise)


class Generate:
    """An ORTModelForCausalLM on the CPU."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)
        options = ort.SessionOptions()
        options.intra_op_num_threads = task.num_threads
        self._model: Any = ORTModelForCausalLM.from_pretrained(
            prepare(task), session_options=options, use_cache=True
        )
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0
        self._is_shared = task.options["sharing"] == "prefill"
        self._is_search = task.options["sharing"] == "search"
        self.settings = {
            "optimum": version("optimum"),
            "optimum-onnx": version("optimum-onnx"),
            "onnxruntime": ort.__version__,
        }

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        if not self._is_search:
            return self.greedy(prompts, starts, num_new)
        return self._generated(prompts, starts[:1], num_new, num_beams=len(starts))

    @torch.inference_mode()
    def _generated(
        self, prompts: list[list[int]], starts: list[int], num_new: int, *, num_beams: int
    ) -> Lists:
        rows = torch.tensor([[*prompt, start] for prompt in prompts for start in starts])
        out = self._model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=num_new,
        )
        return out[:, rows.shape[1] :].reshape(len(prompts), len(starts) * num_beams, -1).tolist()

    @torch.inference_mode()
    def greedy(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        if not self._is_shared:
            return self._generated(prompts, starts, num_new, num_beams=1)
        num_prompts, num_starts = len(prompts), len(starts)
        ids = torch.tensor(prompts)
        tokens = torch.tensor(starts).repeat(num_prompts)[:, None]
        first = self._model(input_ids=ids, attention_mask=torch.ones_like(ids))
        past = tuple(
            tuple(t.repeat_interleave(num_starts, 0) for t in layer)
            for layer in first.past_key_values
        )
        new = []
        for step in range(num_new):
            out = self._model(
                input_ids=tokens,
                attention_mask=torch.ones(len(tokens), ids.shape[1] + step + 1, dtype=torch.int64),
                position_ids=torch.full_like(tokens, ids.shape[1] + step),
                past_key_values=past,
            )
            past = out.past_key_values
            tokens = out.logits[:, -1].argmax(-1, keepdim=True)
            new.append(tokens)
        return torch.cat(new, 1).reshape(num_prompts, num_starts, -1).tolist()


if __name__ == "__main__":
    serve(Generate, prepare)
