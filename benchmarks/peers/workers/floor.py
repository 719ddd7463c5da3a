"""The bare matrix products of one generation in ONNX Runtime, measured like a contender.

Options: `precision` int8 (uint8 activations by int8 weights, as in our graph) or fp32; `layout`

    single  each size is a model of one node: the median of a few runs, less what a call costs,
            times how often the size occurs. Weights stay in the cache, as they may not in truth
    graph   all products up to the first new tokens that have as many rows are one model, those of
            a step another; every product has weights of its own

Knows nothing of the other work of a generation.
"""

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers.floor import MatMul, Sizes, generation, reading, step
from benchmarks.peers.protocol import Lists, Task, serve

_REPEATS = 5


class Products:
    """Runs what one generation multiplies. `generate` gives no sequences, only a time."""

    def __init__(self, task: Task) -> None:
        # One pool for all sessions, as in the engine: idle pools spin and slow each other down.
        ort.set_global_thread_pool_sizes(task.num_threads, 1)
        self._options = ort.SessionOptions()
        self._options.use_per_session_threads = False
        self._is_int8 = task.options["precision"] == "int8"
        self._is_single = task.options["layout"] == "single"
        self._sizes = Sizes.of(json.loads((task.model / "checkpoint/config.json").read_text()))
        self._calls: dict[tuple[MatMul, ...], _Call] = {}
        self.settings = {"onnxruntime": ort.__version__}
        self.measured_ms = 0.0

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        num_prompts, length = len(prompts), len(prompts[0])
        if self._is_single:
            counts = generation(
                self._sizes,
                num_prompts=num_prompts,
                prompt_tokens=length,
                num_sequences=len(starts),
                new_tokens=num_new,
            )
            nothing_ms = self._median_ms([MatMul(1, 4, 4)])
            self.measured_ms = sum(
                count * max(0.0, self._median_ms([product]) - nothing_ms)
                for product, count in counts.items()
            )
        else:
            products = reading(
                self._sizes,
                num_prompts=num_prompts,
                prompt_tokens=length,
                num_sequences=len(starts),
            )
            by_rows = dict[int, list[MatMul]]()
            for product in products:
                by_rows.setdefault(product.rows, []).append(product)
            writing = self._call(step(self._sizes, num_prompts * len(starts)))
            self.measured_ms = sum(self._call(group).ms() for group in by_rows.values())
            self.measured_ms += sum(writing.ms() for _ in range(num_new - 1))
        return []

    greedy = generate

    def _median_ms(self, products: Sequence[MatMul]) -> float:
        call = self._call(products)
        call.ms()
        return statistics.median(call.ms() for _ in range(_REPEATS))

    def _call(self, products: Sequence[MatMul]) -> "_Call":
        key = tuple(products)
        if key not in self._calls:
            self._calls[key] = _Call(products, self._is_int8, self._options)
        return self._calls[key]


class _Call:
    """A session with all inputs and outputs in place."""

    def __init__(
        self, products: Sequence[MatMul], is_int8: bool, options: ort.SessionOptions
    ) -> None:
        model = products_model(products, is_int8)
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        rng = np.random.default_rng(0)
        self._kept: list[Any] = []
        for depth in dict.fromkeys(p.depth for p in products):
            x = rng.integers(0, 256, (products[0].rows, depth), dtype=np.uint8)
            value = ort.OrtValue.ortvalue_from_numpy(x if is_int8 else x.astype(np.float32))
            self._binding.bind_ortvalue_input(f"x{depth}", value)
            self._kept.append(value)
        for i, product in enumerate(products):
            out = np.empty((product.rows, product.columns), np.float32)
            value = ort.OrtValue.ortvalue_from_numpy(out)
            self._binding.bind_ortvalue_output(f"y{i}", value)
            self._kept.append(value)

    def ms(self) -> float:
        start_s = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        return (time.perf_counter() - start_s) * 1000


def products_model(products: Sequence[MatMul], is_int8: bool) -> onnx.ModelProto:
    """Returns a model of independent products; all have the same number of rows."""
    rng = np.random.default_rng(0)
    rows = products[0].rows
    outputs, nodes, weights = [], [], []
    kind = TensorProto.UINT8 if is_int8 else TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(f"x{depth}", kind, [rows, depth])
        for depth in dict.fromkeys(p.depth for p in products)
    ]
    if is_int8:
        weights.append(numpy_helper.from_array(np.asarray(0.01, np.float32), "scale"))
        weights.append(numpy_helper.from_array(np.asarray(128, np.uint8), "zero"))
    for i, product in enumerate(products):
        x, shape = f"x{product.depth}", (product.depth, product.columns)
        matrix = rng.integers(-127, 128, shape, dtype=np.int8)
        if is_int8:
            scales = np.full(product.columns, 0.01, np.float32)
            weights.append(numpy_helper.from_array(matrix, f"w{i}"))
            weights.append(numpy_helper.from_array(scales, f"s{i}"))
            names = [x, f"w{i}", "scale", f"s{i}", "zero"]
            node = helper.make_node(
                "MatMulIntegerToFloat", names, [f"y{i}"], domain="com.microsoft"
            )
        else:
            weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{i}"))
            node = helper.make_node("MatMul", [x, f"w{i}"], [f"y{i}"])
        nodes.append(node)
        out = helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [rows, product.columns])
        outputs.append(out)
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


if __name__ == "__main__":
    serve(Products, lambda task: None)
