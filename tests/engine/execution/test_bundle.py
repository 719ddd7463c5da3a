"""A bundle that is not whole is refused, and the file at fault is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
import onnx
import pytest

from engine.execution.bundle import Bundle, load_bundle
from engine.execution.runtime import Runtime, usable_file
from engine.formats.features import FEATURE_NAMES
from engine.formats.graph import Graph
from engine.formats.manifest import BundleError, read_manifest, sha256_of
from engine.formats.prompt import SESSION, SideInformation
from engine.formats.token_statistics import TOKEN_STATISTICS
from train.clicks.token_statistics import statistics_of


@pytest.fixture(scope="module")
def runtime():
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    yield runtime
    runtime.close()


@pytest.fixture
def copy(tiny_bundle, tmp_path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def rewrite(directory: Path, change) -> None:
    """Changes the manifest, and brings hashes up to date."""
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    content["files"] = {
        name: sha256_of(directory / name) if (directory / name).exists() else old
        for name, old in content["files"].items()
    }
    path.write_text(json.dumps(content))


def test_a_whole_bundle_loads_with_all_its_parts(tiny_bundle, runtime):
    bundle = load_bundle(tiny_bundle, runtime)
    assert bundle.encoder
    assert bundle.generator
    assert bundle.click_model
    assert bundle.index is not None
    assert len(bundle.index) > 100
    assert set(bundle.rungs) == set(bundle.scenarios)


@pytest.mark.parametrize(
    "name", ["generator.onnx", "tokenizer.json", "index/texts.bin", "index/hnsw.faiss"]
)
def test_a_changed_byte_is_refused_with_the_name_of_the_file(copy, runtime, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: content differs"):
        load_bundle(copy, runtime)


@pytest.mark.parametrize("name", ["click_model.onnx", "index/edges.npy"])
def test_a_missing_file_is_refused_with_its_name(copy, runtime, name):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: listed in manifest.json but missing"):
        load_bundle(copy, runtime)


def test_a_file_that_cannot_be_read_is_refused_with_its_name(copy, runtime):
    path = copy / "manifest.json"
    content = json.loads(path.read_text())
    content["files"]["x" * 300] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"xxx: cannot be read \(File name too long\)"):
        load_bundle(copy, runtime)


@pytest.mark.parametrize("name", ["", "Suggestion", "a b", "a" * 65, "a\n", "é"])
def test_a_scenario_that_no_request_can_name_is_refused(copy, runtime, name):
    rewrite(copy, lambda m: m["scenarios"][0].update(name=name))
    with pytest.raises(BundleError, match=r"scenario name .* must be 1 to 64 of the characters"):
        load_bundle(copy, runtime)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused(copy, runtime, version):
    rewrite(copy, lambda m: m.update(schema_version=version))
    with pytest.raises(BundleError, match=r"manifest\.json: schema_version"):
        load_bundle(copy, runtime)


def test_a_directory_without_a_manifest_is_refused(tmp_path, runtime):
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        load_bundle(tmp_path, runtime)


def test_a_manifest_that_is_not_utf8_is_refused_with_its_name(copy, runtime):
    path = copy / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"slots"', b'"sl\xfft"'))
    with pytest.raises(BundleError, match=r"manifest\.json: .*0xff"):
        load_bundle(copy, runtime)


def test_a_bundle_that_can_suggest_nothing_is_refused(copy, runtime):
    rewrite(copy, lambda m: m.update(generator=None, index=None))
    with pytest.raises(BundleError, match="has neither generator nor index"):
        load_bundle(copy, runtime)


def test_a_manifest_that_misstates_a_graph_is_refused(copy, runtime):
    rewrite(copy, lambda m: m["generator"]["inputs"].pop("slots"))
    with pytest.raises(BundleError, match=r"generator\.onnx: inputs are"):
        load_bundle(copy, runtime)


def test_features_of_another_release_are_refused(copy, runtime):
    rewrite(copy, lambda m: m["click_model"]["feature_names"].reverse())
    with pytest.raises(BundleError, match=r"click_model\.onnx: was trained on the features"):
        load_bundle(copy, runtime)


def test_token_statistics_of_another_vocabulary_are_refused(copy, runtime):
    none = np.zeros(0, np.int64)
    statistics_of([(130, 131)], none, none, size=256).save(copy / TOKEN_STATISTICS)
    rewrite(copy, lambda manifest: None)
    with pytest.raises(BundleError, match=r"token_statistics\.npz: counts 256 tokens"):
        load_bundle(copy, runtime)


def test_a_bundle_of_other_token_statistics_has_other_models(copy, tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    assert manifest.has_models_of(read_manifest(copy))
    none = np.zeros(0, np.int64)
    statistics_of([(130, 131)], none, none, size=256).save(copy / TOKEN_STATISTICS)
    rewrite(copy, lambda manifest: None)
    assert not manifest.has_models_of(read_manifest(copy))


def test_an_index_of_another_encoder_is_refused(copy, runtime):
    rewrite(copy, lambda m: m["index"].update(encoder_sha256="0" * 64))
    with pytest.raises(BundleError, match="index: was embedded by the encoder"):
        load_bundle(copy, runtime)


def test_an_index_with_many_equal_vectors_is_sound(copy):
    path = copy / "index/hnsw.faiss"
    spec = read_manifest(copy).index
    assert spec is not None
    loaded = Graph.load(path, dim=spec.embedding_dim, ef_search=16)
    vectors_QD = loaded.vectors(np.arange(len(loaded)))
    vectors_QD[np.random.default_rng(0).permutation(len(loaded))[: len(loaded) // 4]] = vectors_QD[
        0
    ]
    graph = Graph.empty(spec.embedding_dim, m=48, ef_construction=200)
    graph.add(vectors_QD, num_threads=1)
    path.unlink()
    graph.save(path)
    rewrite(copy, lambda manifest: None)
    assert load_bundle(copy, None).index is not None


def test_an_index_whose_vectors_are_not_linked_is_refused(copy):
    path = copy / "index/hnsw.faiss"
    graph: Any = faiss.read_index(str(path))
    links = faiss.vector_to_array(graph.hnsw.neighbors)
    faiss.copy_array_to_vector(np.full_like(links, -1), graph.hnsw.neighbors)
    path.unlink()
    faiss.write_index(graph, str(path))
    rewrite(copy, lambda manifest: None)
    with pytest.raises(BundleError, match=r"hnsw\.faiss: \d+ of 64 vectors do not find themselves"):
        load_bundle(copy, None)


@pytest.mark.parametrize("name", ["tokenizer.json", "encoder_tokenizer.json"])
def test_a_damaged_tokenizer_is_refused_with_its_name(copy, name):
    content = (copy / "tokenizer.json").read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])

    def names_it(manifest):
        manifest["encoder"]["tokenizer"] = name
        manifest["files"][name] = ""

    rewrite(copy, names_it)
    with pytest.raises(BundleError, match=f"{name}: cannot be read"):
        load_bundle(copy, None)


def test_an_instruction_that_leaves_no_room_for_a_query_is_refused(copy, runtime):
    bundle = load_bundle(copy, None)
    spec = bundle.manifest.prompt
    longest = spec.max_tokens - spec.max_query_tokens - 3
    texts = ["q" * num for num in range(200)]
    of_length = {len(bundle.vocabulary.encode(text)): text for text in texts}

    rewrite(copy, lambda m: m["prompt"].update(instruction=of_length[longest]))
    renderer = load_bundle(copy, None).renderer
    prompt = renderer.generation_prompt("suggestion", "ab " * 100, [SideInformation(SESSION, "a")])
    assert len(prompt.ids) == spec.max_tokens
    rewrite(copy, lambda m: m["prompt"].update(instruction=of_length[longest + 1]))
    with pytest.raises(BundleError, match=r"prompt\.max_tokens is 64, must be at least 65"):
        load_bundle(copy, runtime)


def test_a_graph_that_is_no_graph_is_refused(copy, runtime):
    (copy / "encoder.onnx").write_bytes(b"not onnx")

    def without_index(manifest):
        manifest["index"] = None

    rewrite(copy, without_index)
    with pytest.raises(BundleError, match=r"encoder\.onnx: cannot be loaded"):
        load_bundle(copy, runtime)


def test_a_graph_of_a_newer_opset_is_refused(copy, runtime):
    graph = onnx.load(copy / "generator.onnx")
    graph.opset_import[0].version = 999
    onnx.save(graph, copy / "generator.onnx")
    rewrite(copy, lambda manifest: None)
    with pytest.raises(
        BundleError, match=r"generator\.onnx: cannot be loaded by ONNX Runtime.*999"
    ):
        load_bundle(copy, runtime)


def test_a_cpu_without_a_feature_gets_the_fallback_or_a_refusal(tiny_bundle):
    spec = read_manifest(tiny_bundle).generator
    assert spec is not None
    assert spec.required_cpu_features == []  # int8 weights are exact on every CPU
    spec = msgspec.structs.replace(spec, required_cpu_features=["avx512_vnni|avx_vnni"])
    assert usable_file(spec, frozenset({"avx_vnni"})) == "generator.onnx"
    with pytest.raises(BundleError, match=r"avx512_vnni.* has no fallback"):
        usable_file(spec, frozenset({"avx2"}))
    spec = msgspec.structs.replace(spec, fallback_file="generator_fp32.onnx")
    assert usable_file(spec, frozenset({"avx2"})) == "generator_fp32.onnx"


def test_a_row_of_a_batch_gets_what_it_gets_alone(tiny_bundle, runtime):
    from engine.execution.models import GenerateRow, ScoreRow

    bundle: Bundle = load_bundle(tiny_bundle, runtime)
    encoder, generator, click_model = bundle.encoder, bundle.generator, bundle.click_model
    assert encoder is not None
    assert generator is not None
    assert click_model is not None
    rung = bundle.rungs["suggestion"][0]
    rng = np.random.default_rng(0)

    def ids(num: int) -> list[int]:
        return rng.integers(130, bundle.vocabulary.size, num).tolist()

    prompts = [GenerateRow(ids(n), (130, bundle.vocabulary.size), rung) for n in (3, 17, 64)]
    together = generator.run(prompts)
    assert together == [generator.run([p])[0] for p in prompts]

    def features(num: int):
        return rng.random((num, len(FEATURE_NAMES)), np.float32)

    contexts = [
        ScoreRow(ids(n), [ids(t) for t in range(1, c + 1)], features(c))
        for n, c in ((3, 1), (40, 8), (64, 5))
    ]
    scored = click_model.run(contexts, 8)
    for logits, row in zip(scored, contexts, strict=True):
        assert logits == pytest.approx(click_model.run([row], 16)[0], abs=1e-4)

    queries = [ids(n) for n in (1, 9, 70)]
    vectors = encoder.run(queries)
    for vector, query in zip(vectors, queries, strict=True):
        assert vector == pytest.approx(encoder.run([query])[0], abs=1e-2)
