"""Transformers' own `generate`. Knows nothing of the other peers."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.peers.protocol import Lists, Task, serve


class Generate:
    """Options: `precision` fp32, bf16 or int8 (dynamic); `sharing` prefill, none or search.

    A search is one beam search a prompt, as wide as the suggestions, after the prompt is read once.
    """

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.num_threads)
        precision = task.options["precision"]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        checkpoint = task.model / "checkpoint"
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        if precision == "int8":
            model = torch.ao.quantization.quantize_dynamic(
                model, {torch.nn.Linear}, dtype=torch.qint8
            )
        self._model = model
        self._sharing = task.options["sharing"]
        self.settings = {"transformers": transformers.__version__, "torch": str(torch.__version__)}

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        if self._sharing == "search":
            return self._written(prompts, starts[:1], num_new, num_beams=len(starts))
        return self.greedy(prompts, starts, num_new)

    def greedy(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        return self._written(prompts, starts, num_new, num_beams=1)

    @torch.inference_mode()
    def _written(
        self, prompts: list[list[int]], starts: list[int], num_new: int, *, num_beams: int
    ) -> Lists:
        ids = torch.tensor(prompts).repeat_interleave(len(starts), 0)
        ids = torch.cat([ids, torch.tensor(starts).repeat(len(prompts))[:, None]], 1)
        cache = None
        if self._sharing != "none":
            cache = DynamicCache()
            self._model.model(torch.tensor(prompts), past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(starts) * num_beams)
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=num_new,
        )
        return out[:, ids.shape[1] :].reshape(len(prompts), len(starts) * num_beams, -1).tolist()


if __name__ == "__main__":
    serve(Generate, lambda task: None)
