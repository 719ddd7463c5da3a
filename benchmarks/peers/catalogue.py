"""The contenders: our graph, its peers, and the variants of each that are tried.

Knows nothing of how a contender works; its worker does.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

from benchmarks.peers.environments import CTRANSLATE2, ONNXRUNTIME_GENAI, OPENVINO, Environment

SEARCH = " beams"  # ends the names of peers that search as our beam graph does
BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of using a contender: options as its worker reads them."""

    options: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return " ".join(value for _, value in self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A contender with its variants; the fastest is kept for each number of prompts."""

    name: str
    worker: tuple[str, ...]  # arguments of the interpreter
    environment: Environment | None  # None is our own
    variants: tuple[Variant, ...]
    reference: Variant  # in fp32: its greedy tokens must be those of transformers


def variant(**options: str) -> Variant:
    return Variant(tuple(options.items()))


def _each(precisions: Iterable[str], sharings: Iterable[str]) -> tuple[Variant, ...]:
    """Returns a variant for each precision with each way of sharing a prompt."""
    return tuple(variant(precision=p, sharing=s) for p, s in product(precisions, sharings))


def _worker(module: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.peers.workers.{module}")


def ours() -> list[Peer]:
    """Returns our graphs: each mode in each precision is a contender of its own."""
    return [
        Peer(
            name=name,
            worker=_worker("ours"),
            environment=None,
            variants=(variant(mode=mode, precision=precision),),
            reference=variant(mode=mode, precision="fp32"),
        )
        for name, mode, precision in (
            ("ours", "beam", "int8"),
            ("ours fp32", "beam", "fp32"),
            ("ours slots", "slots", "int8"),
            ("ours slots fp32", "slots", "fp32"),
        )
    ]


def floors() -> list[Peer]:
    """Returns the bare matrix products of one generation, as if they were contenders."""
    return [
        Peer(
            name=f"floor {precision}{' in one graph' if layout == 'graph' else ''}",
            worker=_worker("floor"),
            environment=None,
            variants=(variant(precision=precision, layout=layout),),
            reference=variant(precision="fp32", layout=layout),
        )
        for precision, layout in (("int8", "single"), ("int8", "graph"), ("fp32", "single"))
    ]


def peers(cpu_features: Iterable[str]) -> list[Peer]:
    """Returns the peers with the variants that make sense on a CPU.

    Each comes twice: as it is the fastest with several sequences a prompt, sampled or begun by a
    token of their own, and with one beam search a prompt.
    """
    has_bf16 = not BF16_FEATURES.isdisjoint(cpu_features)
    openvino = [
        *(variant(precision=p, sharing="parallel") for p in ("fp32", "int8", "int4", "static")),
        variant(precision="fp32", sharing="cache"),
        variant(precision="int8", sharing="cache"),
        variant(precision="int8", sharing="beams"),
        *(variant(precision=p, sharing="state") for p in ("fp32", "int8", "static")),
        variant(precision="fp32", sharing="parallel", kv="f32"),
        variant(precision="int8", sharing="parallel", kv="f32"),
    ]
    if has_bf16:  # then it is OpenVINO's default
        openvino += [
            variant(precision=p, sharing="parallel", kv="default", hint="f32")
            for p in ("fp32", "int8")
        ]
    floats = ["fp32", *(["bf16"] if has_bf16 else [])]
    sampling = [
        Peer(
            name="openvino",
            worker=_worker("openvino"),
            environment=OPENVINO,
            variants=tuple(openvino),
            reference=variant(precision="fp32", sharing="parallel", kv="f32", hint="f32"),
        ),
        Peer(
            name="onnxruntime-genai",
            worker=_worker("onnxruntime_genai"),
            environment=ONNXRUNTIME_GENAI,
            variants=_each(("fp32", "int4", "int8"), ("rewind", "none")),
            reference=variant(precision="fp32", sharing="none"),
        ),
        Peer(
            name="ctranslate2",
            worker=_worker("ctranslate2"),
            environment=CTRANSLATE2,
            variants=(
                *_each(
                    ("float32", "int8", *(["bfloat16", "int8_bfloat16"] if has_bf16 else [])),
                    ("alternatives",),
                ),
                *_each(("int8",), ("sampling", "static", "none")),
            ),
            reference=variant(precision="float32", sharing="none"),
        ),
        Peer(
            name="optimum",
            worker=_worker("optimum"),
            environment=None,
            variants=_each(("int8", "fp32"), ("prefill", "none")),
            reference=variant(precision="fp32", sharing="prefill"),
        ),
        Peer(
            name="transformers",
            worker=_worker("transformers"),
            environment=None,
            variants=(
                *(variant(precision=p, sharing="prefill") for p in (*floats, "int8")),
                variant(precision=floats[-1], sharing="none"),
            ),
            reference=variant(precision="fp32", sharing="none"),
        ),
    ]
    return [*sampling, *map(_searching, sampling)]


def _searching(peer: Peer) -> Peer:
    """Returns a peer that searches, in each of its precisions."""
    precisions = dict.fromkeys(dict(v.options)["precision"] for v in peer.variants)
    return replace(peer, name=peer.name + SEARCH, variants=_each(precisions, ("search",)))
