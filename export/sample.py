"""A bundle with random weights: for tests, and to try the engine without training.

Its answers mean nothing; its files, shapes and code paths are those of a trained bundle.
"""

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file
from transformers import BertModel, LlamaForCausalLM, LlamaModel

from engine.formats.features import FEATURE_NAMES
from engine.formats.index import Edges, write_index
from engine.formats.manifest import IndexSpec, Manifest, PromptSpec, ScenarioSpec, sha256_of
from engine.formats.prompt import ANSWER, COOCCURRING, SESSION
from engine.formats.token_statistics import TOKEN_STATISTICS
from export.bundle import Mode, Precision, export_bundle
from train.clicks.token_statistics import statistics_of
from train.models.backbone import bert_config, llama_config, shapes_of
from train.models.tokenizer import train_tokenizer
from train.settings import Size

_HEADS = (
    *("wireless", "gaming", "kitchen", "garden", "running", "winter", "baby", "vintage"),
    *("leather", "outdoor", "portable", "stainless", "bluetooth", "waterproof", "christmas"),
)
_NOUNS = (
    *("earbuds", "mouse", "shoes", "table", "lamp", "jacket", "camera", "chair", "phone case"),
    *("backpack", "speaker", "blanket", "bottle", "keyboard", "headphones", "umbrella"),
)
_TAILS = ("", " for kids", " cheap", " black", " 2024")
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
_ODD = ("ベルト メンズ", "sudadera niño", "c++ book", "50% off", "😀 sticker", "<|sep|> pillow")

SCENARIOS = (
    ScenarioSpec(
        name="suggestion",
        description="What to search next",
        num_slots=8,
        position_ctr=[1.0, 0.8, 0.65, 0.55, 0.5, 0.45, 0.4, 0.37],
    ),
    ScenarioSpec(
        name="completion",
        description="Finish what is being typed",
        completes_prefix=True,
        num_slots=8,
        position_ctr=[1.0, 0.7, 0.5, 0.4, 0.35, 0.3, 0.28, 0.26],
    ),
    ScenarioSpec(
        name="clarification",
        description="A question and its options",
        has_auxiliary_text=True,
        num_slots=7,
        position_ctr=[1.0, 0.85, 0.75, 0.7, 0.65, 0.6],
    ),
)


def write_sample_run(directory: Path, *, size: Size = "tiny", seed: int = 0) -> None:
    """Writes a run directory as training would, with random weights and made-up queries."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    texts = {f"{h} {n}{t}" for h in _HEADS for n in _NOUNS for t in _TAILS} | set(_ODD)
    queries = sorted(texts, key=lambda t: t.encode())
    popularity = rng.zipf(1.5, len(queries)).clip(max=1000).astype(np.int64)
    mined = directory / "mined"
    mined.mkdir(parents=True)
    counts = ("num_searches", "num_searches_before_cut", "num_users")
    table = pa.table({"text": queries, **dict.fromkeys(counts, popularity)})
    pq.write_table(table, mined / "queries.parquet")
    (mined / "scenarios.json").write_bytes(msgspec.json.encode(SCENARIOS))
    prompt = PromptSpec(side_information_kinds=[SESSION, ANSWER, COOCCURRING])
    (mined / "prompt.json").write_bytes(msgspec.json.encode(prompt))

    shapes = shapes_of(size)
    # Graphs have the size of trained ones; the smallest is for tests, which have no time for it.
    words = [] if size == "tiny" else _made_up_words(2 * shapes.vocab_size, rng)
    vocabulary = train_tokenizer(
        [*queries, *words],
        [*popularity.tolist(), *([100] * len(words))],
        size=shapes.vocab_size,
        scenarios=[s.name for s in SCENARIOS],
        kinds=prompt.side_information_kinds,
    )
    vocabulary.save(directory / "tokenizer.json")
    encoder = BertModel(bert_config(shapes.encoder, vocabulary.size, 64), add_pooling_layer=False)
    encoder.save_pretrained(directory / "encoder")
    generator = LlamaForCausalLM(llama_config(shapes.generator, vocabulary.size))
    backbone = LlamaModel(llama_config(shapes.click_model, vocabulary.size))
    with torch.no_grad():  # larger weights: answers that depend on their input
        for parameter in [*generator.parameters(), *backbone.parameters()]:
            if parameter.dim() > 1:
                parameter.mul_(3)
    generator.save_pretrained(directory / "generator")
    backbone.save_pretrained(directory / "click_model")
    width = backbone.config.hidden_size + len(FEATURE_NAMES)
    num_features = len(FEATURE_NAMES)
    head = {
        "head.features.weight": rng.normal(0, num_features**-0.5, (64, num_features)),
        "head.features.bias": np.zeros(64),
        "head.mixed.weight": rng.normal(0, 0.1, (64, 64)),
        "head.mixed.bias": np.zeros(64),
        "head.hidden.weight": rng.normal(0, width**-0.5, (64, width)),
        "head.hidden.bias": np.zeros(64),
        "head.out.weight": rng.normal(0, 0.3, (1, 128)),
        "head.out.bias": np.full(1, -1.5),
        "head.mean": rng.random(num_features),
        "head.scale": 0.2 + rng.random(num_features),
    }
    arrays = {name: array.astype(np.float32) for name, array in head.items()}
    save_file(arrays, directory / "click_model/head.safetensors")
    none = np.zeros(0, np.int64)
    ids = vocabulary.encode_batch(queries)
    statistics = statistics_of(ids, none, none, size=vocabulary.size)
    statistics.save(directory / "click_model" / TOKEN_STATISTICS)
    calibration = {s.name: (1.0, 0.0) for s in SCENARIOS}
    (directory / "click_model/calibration.json").write_bytes(msgspec.json.encode(calibration))
    _write_sample_index(directory, queries, popularity, shapes.encoder.hidden_size, rng)


def _made_up_words(num: int, rng: np.random.Generator) -> list[str]:
    """Returns distinct words of two to four syllables."""
    words: dict[str, None] = {}
    while len(words) < num:
        drawn = rng.choice(_SYLLABLES, rng.integers(2, 5))
        words["".join(drawn.tolist())] = None
    return list(words)


def _write_sample_index(
    directory: Path,
    queries: list[str],
    popularity: np.ndarray,
    dim: int,
    rng: np.random.Generator,
) -> None:
    embeddings = rng.normal(size=(len(queries), dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    degrees = rng.integers(0, 12, len(queries))
    rows = [rng.choice(len(queries), d, replace=False) for d in degrees]
    npmi = [np.sort(rng.random(d))[::-1] for d in degrees]
    write_index(
        directory / "index",
        texts=queries,
        popularity=popularity.astype(np.float32),
        edges=Edges(
            np.concatenate([[0], np.cumsum(degrees)]),
            np.concatenate(rows).astype(np.int32),
            np.concatenate(npmi).astype(np.float32),
        ),
        embeddings=embeddings,
    )
    spec = IndexSpec(
        num_queries=len(queries),
        embedding_dim=dim,
        m=16,
        ef_construction=100,
        ef_search=64,
        encoder_sha256=sha256_of(directory / "encoder/model.safetensors"),
        min_users=1,
        counted="users",
    )
    (directory / "index/index.json").write_bytes(msgspec.json.encode(spec))


def write_sample_bundle(
    directory: Path,
    *,
    mode: Mode = "slots",
    precision: Precision = "int8",
    size: Size = "tiny",
    seed: int = 0,
) -> Manifest:
    """Writes a bundle with random weights to a directory that does not exist yet."""
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        write_sample_run(run, size=size, seed=seed)
        return export_bundle(run, directory, mode=mode, precision=precision, num_parity_requests=6)
