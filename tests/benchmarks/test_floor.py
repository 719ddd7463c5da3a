"""The floor multiplies exactly what a decoder needs."""

import numpy as np
import onnxruntime as ort
import pytest
from transformers import LlamaForCausalLM

from benchmarks.peers.floor import MatMul, Sizes, generation, reading, step
from benchmarks.peers.workers.floor import products_model
from train.models.backbone import llama_config, shapes_of


def sizes_and_parameters() -> tuple[Sizes, int]:
    """A grouped-query decoder, and how many weights its matrices have (tied embedding once)."""
    shapes = shapes_of("demo")
    model = LlamaForCausalLM(llama_config(shapes.generator, shapes.vocab_size))
    matrices = [p.numel() for p in model.parameters() if p.ndim == 2]
    return Sizes.of(model.config.to_dict()), sum(matrices)


def num_multiplications(products: list[MatMul]) -> int:
    return sum(p.rows * p.depth * p.columns for p in products)


def fixed(shape: list[int | str | None]) -> list[int]:
    """Returns the shape of an input without free dimensions."""
    sizes = [size for size in shape if isinstance(size, int)]
    assert len(sizes) == len(shape)
    return sizes


def test_a_step_multiplies_each_row_by_every_parameter() -> None:
    sizes, parameters = sizes_and_parameters()
    assert num_multiplications(step(sizes, 24)) == 24 * parameters


def test_prompts_need_no_vocabulary_and_nothing_after_the_last_keys_and_values() -> None:
    sizes, parameters = sizes_and_parameters()
    left_out = (
        sizes.vocabulary * sizes.hidden
        + 2 * sizes.hidden * sizes.query
        + 3 * sizes.hidden * sizes.intermediate
    )
    products = reading(sizes, num_prompts=2, prompt_tokens=64, num_sequences=8)
    expected = 2 * 64 * (parameters - left_out) + 2 * 8 * parameters
    assert num_multiplications(products) == expected


def test_a_generation_reads_once_and_goes_on_for_all_but_the_first_new_tokens() -> None:
    sizes, _ = sizes_and_parameters()
    counts = generation(sizes, num_prompts=2, prompt_tokens=64, num_sequences=8, new_tokens=5)
    products = reading(sizes, num_prompts=2, prompt_tokens=64, num_sequences=8)
    expected = num_multiplications(products) + 4 * num_multiplications(step(sizes, 16))
    assert num_multiplications(list(counts.elements())) == expected
    assert counts[MatMul(16, sizes.hidden, sizes.vocabulary)] == 5


@pytest.mark.parametrize("is_int8", [True, False])
def test_the_measured_models_multiply_what_they_are_told(is_int8: bool) -> None:
    products = [MatMul(3, 8, 16), MatMul(3, 8, 16), MatMul(3, 16, 4)]
    model = products_model(products, is_int8).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    kind = np.uint8 if is_int8 else np.float32
    value = 129 if is_int8 else 1
    feed = {i.name: np.full(fixed(i.shape), value, kind) for i in session.get_inputs()}
    shapes = [np.asarray(out).shape for out in session.run(None, feed)]
    assert shapes == [(p.rows, p.columns) for p in products]
