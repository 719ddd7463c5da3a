"""The encoder graph: exported by optimum, pooled and normalised here.

    input_ids, attention_mask   int64 (B, T), right padded
    embedding                   float32 (B, D), unit norm: mean over tokens, then L2

Knows nothing of how the encoder was trained.
"""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.transformers import float16
from optimum.exporters.onnx import onnx_export_from_model
from transformers import PreTrainedModel

from export.calibration import best_scale
from export.linear import quantise_columns

_CONTRIB = "com.microsoft"


def build_encoder(model: PreTrainedModel) -> onnx.ModelProto:
    """Returns the fp32 encoder graph of a transformers model that gives last_hidden_state."""
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of constants that are constant here
        onnx_export_from_model(
            model.eval(), output=Path(directory), task="feature-extraction", do_validation=False
        )
        graph_model = onnx.load(Path(directory) / "model.onnx")
    graph = graph_model.graph
    _drop_token_types(graph)
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["pool_mask"], to=1),
        helper.make_node("Unsqueeze", ["pool_mask", "pool_last"], ["pool_weight"]),
        helper.make_node("Mul", ["last_hidden_state", "pool_weight"], ["pool_masked"]),
        helper.make_node("ReduceSum", ["pool_masked", "pool_tokens"], ["pool_sum"], keepdims=0),
        helper.make_node("ReduceL2", ["pool_sum", "pool_axis"], ["pool_norm"], keepdims=1),
        helper.make_node("Max", ["pool_norm", "pool_eps"], ["pool_safe"]),
        helper.make_node("Div", ["pool_sum", "pool_safe"], ["embedding"]),
    ]
    graph.node.extend(nodes)
    constants = {
        "pool_last": np.asarray([-1]),
        "pool_tokens": np.asarray([1]),
        "pool_axis": np.asarray([-1], np.int64),
        "pool_eps": np.float32(1e-12),
    }
    opset = next(o.version for o in graph_model.opset_import if o.domain == "")
    if opset < 18:  # ReduceL2 took its axes as an attribute
        nodes[4] = helper.make_node("ReduceL2", ["pool_sum"], ["pool_norm"], axes=[-1], keepdims=1)
        del graph.node[-7:]
        graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    hidden = model.config.hidden_size
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("embedding", 1, ["batch", hidden]))
    for node_input in graph.input:
        dims = node_input.type.tensor_type.shape.dim
        dims[0].dim_param, dims[1].dim_param = "batch", "tokens"
    return graph_model


def quantise_encoder(
    model: onnx.ModelProto, samples: list[Mapping[str, NDArray[np.int64]]]
) -> onnx.ModelProto:
    """Returns the encoder with static int8 matrix products and int8 token embeddings.

    Args:
        model: the fp32 graph; left as it is.
        samples: inputs without padding, to measure activations on.

    Raises:
        ValueError: the graph does not start as those of BERT and its like.
    """
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    products = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in arrays]
    scales = _input_scales(model, sorted({n.input[0] for n in products}), samples)
    added: dict[str, np.ndarray] = {"q_zero": np.uint8(128)}  # type: ignore[dict-item]
    nodes, quantised_inputs, removed = list[onnx.NodeProto](), set[str](), set[str]()
    lookups = (n for n in graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
    embedding = next(lookups, None)
    if embedding is None:
        raise ValueError(
            "the encoder's graph looks up no embeddings by input_ids, so that int8 does not know "
            "it: export with precision fp32 or fp16"
        )
    for node in graph.node:
        if any(node is p for p in products):
            x, matrix, out = node.input[0], node.input[1], node.output[0]
            added[f"{x}_scale"] = np.float32(scales[x])  # type: ignore[assignment]
            added[f"{matrix}_q"], added[f"{matrix}_scale"] = quantise_columns(arrays[matrix])
            removed.add(matrix)
            if x not in quantised_inputs:
                quantised_inputs.add(x)
                args = [x, f"{x}_scale", "q_zero"]
                nodes.append(helper.make_node("QuantizeLinear", args, [f"{x}_q"]))
            args = [f"{x}_q", f"{matrix}_q", f"{x}_scale", f"{matrix}_scale", "q_zero"]
            nodes.append(helper.make_node("MatMulIntegerToFloat", args, [out], domain=_CONTRIB))
        elif node is embedding:
            table, out = node.input[0], node.output[0]
            by_row, scale = quantise_columns(arrays[table].T)
            added[f"{table}_q"] = np.ascontiguousarray(by_row.T)
            added[f"{table}_scale"] = scale[:, None]
            removed.add(table)
            nodes += [
                helper.make_node("Gather", [f"{table}_q", "input_ids"], [f"{out}_q"]),
                helper.make_node("Gather", [f"{table}_scale", "input_ids"], [f"{out}_scale"]),
                helper.make_node("Cast", [f"{out}_q"], [f"{out}_cast"], to=1),
                helper.make_node("Mul", [f"{out}_cast", f"{out}_scale"], [out]),
            ]
        else:
            nodes.append(node)
    kept = [t for t in graph.initializer if t.name not in removed]
    kept += [numpy_helper.from_array(np.asarray(a), name) for name, a in added.items()]
    result = helper.make_graph(nodes, graph.name, graph.input, graph.output, kept)
    opsets = [*quantised.opset_import, helper.make_opsetid(_CONTRIB, 1)]
    return helper.make_model(
        result, opset_imports=opsets, ir_version=quantised.ir_version, producer_name="queryrec"
    )


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the encoder with half-precision weights and activations; the output stays float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Norms and sums overflow half precision before the embedding is normalised.
    kept = [
        "ReduceSum",
        "ReduceL2",
        "ReduceMean",
        "Pow",
        "Sqrt",
        "Div",
        "Max",
        "LayerNormalization",
    ]
    return float16.convert_float_to_float16(copy, keep_io_types=True, op_block_list=kept)


def _input_scales(
    model: onnx.ModelProto, names: list[str], samples: list[Mapping[str, NDArray[np.int64]]]
) -> dict[str, float]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_tensor_value_info(n, 1, None) for n in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    seen: dict[str, list[NDArray[np.float32]]] = {n: [] for n in names}
    for sample in samples:
        for name, array in zip(names, session.run(names, dict(sample)), strict=True):
            seen[name].append(np.abs(array).ravel())
    return {
        name: best_scale(np.concatenate(arrays), float(max(a.max() for a in arrays)))
        for name, arrays in seen.items()
    }


def _drop_token_types(graph: onnx.GraphProto) -> None:
    """Replaces the input token_type_ids, always 0 for one text, by zeros."""
    if not any(i.name == "token_type_ids" for i in graph.input):
        return
    kept = [i for i in graph.input if i.name != "token_type_ids"]
    del graph.input[:]
    graph.input.extend(kept)
    zeros = helper.make_node("Sub", ["input_ids", "input_ids"], ["token_type_ids"])
    graph.node.insert(0, zeros)
