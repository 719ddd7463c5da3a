"""The model repository, without a server: what configurations say, and what the ragged graphs do.

No wheel carries Triton's ONNX Runtime backend, so its part is played here: ids of all requests
are joined in one run, the ends of each counted, and the results split by rows.
"""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_INT64, BatchInput, ModelConfig
from typer.testing import CliRunner

from engine.config import DeviceKind
from engine.execution.models import GenerateRow, ScoreRow
from engine.execution.wire import (
    Arrays,
    click_model_row,
    encoder_row,
    generator_row,
    model_name,
    specs,
    wire_of,
)
from engine.formats.features import FEATURE_NAMES
from engine.formats.manifest import Manifest, read_manifest, write_manifest
from engine.scheduling.planner import Rung
from export.cli import app
from export.packing import sealed
from export.sample import write_sample_bundle
from export.triton import Backend, write_repository

ROLES = ("encoder", "generator", "click_model")
BACKENDS: tuple[Backend, ...] = ("onnxruntime", "python")
TYPES = {"tensor(int64)": TYPE_INT64, "tensor(float)": TYPE_FP32}
VOCABULARY = 512  # of the tiny bundle
ids = st.integers(0, VOCABULARY - 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("triton") / "bundle"
    write_sample_bundle(directory, precision="fp32")
    return directory


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture(scope="module")
def repositories(bundle: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for backend in BACKENDS:
        found[backend] = bundle.with_name(backend)
        write_repository(bundle, found[backend], backend=backend, num_instances=2, num_threads=3)
    return found


@pytest.fixture(scope="module")
def ragged(repositories: dict[str, Path], manifest: Manifest) -> dict[str, ort.InferenceSession]:
    directory = repositories["onnxruntime"]
    return {r: session(directory / model_name(r, manifest) / "1/model.onnx") for r in ROLES}


@pytest.fixture(scope="module")
def plain(bundle: Path) -> dict[str, ort.InferenceSession]:
    return {r: session(bundle / f"{r}.onnx") for r in ROLES}


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def config_of(repository: Path, name: str) -> ModelConfig:
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())


def run_as_triton(graph: ort.InferenceSession, config: ModelConfig, rows: list[Arrays]):
    """Runs requests as one batch, as the backend does: see `batch_input` of the configuration."""
    feed = {}
    for tensor in config.input:
        arrays = [row[tensor.name] for row in rows]
        if tensor.allow_ragged_batch:
            feed[tensor.name] = np.concatenate([a.ravel() for a in arrays])
        else:
            assert len({a.shape for a in arrays}) == 1, "the batcher joins only equal shapes"
            feed[tensor.name] = np.concatenate(arrays)
    for extra in config.batch_input:
        assert extra.kind == BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT
        counts = [row[extra.source_input[0]].size for row in rows]
        feed[extra.target_name[0]] = np.cumsum(counts).astype(np.int32)
    return graph.run(None, feed)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("role", ROLES)
def test_a_configuration_reads_back_as_it_was_written(repositories, manifest, role, backend):
    name = model_name(role, manifest)
    config = config_of(repositories[backend], name)
    again = text_format.Parse(text_format.MessageToString(config), ModelConfig())
    assert again == config
    assert config.name == name
    assert config.backend == backend
    assert config.max_batch_size == 8
    assert config.instance_group[0].count == 2
    assert config.parameters["intra_op_thread_count"].string_value == "3"


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_form_without_delay_or_queue_policy(repositories, manifest, backend):
    for role in ROLES:
        config = config_of(repositories[backend], model_name(role, manifest))
        assert config.HasField("dynamic_batching")
        assert not config.dynamic_batching.ListFields()


@pytest.mark.parametrize("role", ROLES)
def test_a_configuration_and_its_graph_agree(repositories, manifest, ragged, role):
    config = config_of(repositories["onnxruntime"], model_name(role, manifest))
    inputs = {i.name: (i.type, i.shape) for i in ragged[role].get_inputs()}
    for tensor in config.input:
        element, shape = inputs.pop(tensor.name)
        assert TYPES[element] == tensor.data_type
        if tensor.allow_ragged_batch:  # Triton takes nothing else
            assert len(shape) == 1
            assert isinstance(shape[0], str)
        else:
            assert [d if isinstance(d, int) else -1 for d in shape[1:]] == list(tensor.dims)
    assert inputs == {
        t: ("tensor(int32)", ["batch"]) for extra in config.batch_input for t in extra.target_name
    }
    outputs = {o.name: (o.type, o.shape) for o in ragged[role].get_outputs()}
    assert len(config.output) == len(outputs) == 1
    element, shape = outputs[config.output[0].name]
    assert TYPES[element] == config.output[0].data_type
    assert [d if isinstance(d, int) else -1 for d in shape[1:]] == list(config.output[0].dims)


def test_both_backends_take_the_same_requests(repositories, manifest):
    for role in ROLES:
        one, other = (config_of(repositories[b], model_name(role, manifest)) for b in BACKENDS)
        assert [(i.name, i.data_type, i.dims) for i in one.input] == [
            (i.name, i.data_type, i.dims) for i in other.input
        ]
        assert list(one.output) == list(other.output)
        wire = wire_of(specs(manifest)[role])
        assert [(i.name, tuple(i.dims)) for i in one.input] == [
            (t.name, t.dims) for t in wire.inputs
        ]


def test_weights_are_stored_once(repositories, manifest, bundle):
    for role in ROLES:
        plain_bytes = (bundle / f"{role}.onnx").stat().st_size
        directory = repositories["onnxruntime"] / model_name(role, manifest)
        assert (directory / "1/model.onnx").stat().st_size < plain_bytes + 10_000


def test_the_python_model_is_the_bundles_graph_and_imports_nothing_of_ours(
    repositories, manifest, bundle
):
    for role in ROLES:
        directory = repositories["python"] / model_name(role, manifest) / "1"
        graph = (directory / "model.onnx").read_bytes()
        assert graph == (bundle / f"{role}.onnx").read_bytes()
        text = (directory / "model.py").read_text()
        assert not any(f"{kind} {p}" in text for kind in ("import", "from") for p in
                       ("engine", "export", "train", "queryrec"))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_slots=st.integers(1, 4))
def test_prompts_of_any_lengths_run_together_as_they_do_alone(
    ragged, plain, repositories, manifest, data, num_slots
):
    config = config_of(repositories["onnxruntime"], model_name("generator", manifest))
    limits = st.tuples(*[st.integers(1, 6)] * num_slots)
    slots = st.tuples(*[st.integers(4, 12)] * num_slots)
    row = st.builds(
        GenerateRow,
        prompt_ids=st.lists(ids, min_size=1, max_size=64),
        first_token_range=st.sampled_from([(130, VOCABULARY), (200, 260)]),
        rung=st.builds(Rung, slots=slots, max_new_tokens=limits),
    )
    rows = data.draw(st.lists(row, min_size=1, max_size=5))
    together = run_as_triton(ragged["generator"], config, [generator_row(r) for r in rows])
    for sequences, r in zip(together, rows, strict=True):
        alone = plain["generator"].run(None, padded_generator_feed(r))[0][0]
        assert (sequences[:, : alone.shape[1]] == alone).all()
        assert (sequences[:, alone.shape[1] :] == 0).all()


def padded_generator_feed(row: GenerateRow) -> dict[str, np.ndarray]:
    prompt = np.array([row.prompt_ids])
    return {
        "input_ids": prompt,
        "attention_mask": np.ones_like(prompt),
        "slots": np.array([row.rung.slots]),
        "max_new_tokens": np.array([row.rung.max_new_tokens]),
        "first_token_range": np.array([row.first_token_range]),
    }


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(ids, min_size=1, max_size=70), min_size=1, max_size=6))
def test_texts_of_any_lengths_are_embedded_together_as_they_are_alone(
    ragged, plain, repositories, manifest, texts
):
    config = config_of(repositories["onnxruntime"], model_name("encoder", manifest))
    together = run_as_triton(ragged["encoder"], config, [encoder_row(t, 64) for t in texts])
    for embedding, text in zip(together, texts, strict=True):
        alone = np.array([text[:64]])
        feed = {"input_ids": alone, "attention_mask": np.ones_like(alone)}
        assert embedding == pytest.approx(plain["encoder"].run(None, feed)[0][0], abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_candidates=st.sampled_from([3, 8]))
def test_candidates_of_any_lengths_are_scored_together_as_they_are_alone(
    ragged, plain, repositories, manifest, data, num_candidates
):
    config = config_of(repositories["onnxruntime"], model_name("click_model", manifest))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    context = st.lists(ids, min_size=1, max_size=64)
    candidates = st.lists(st.lists(ids, min_size=1, max_size=20), min_size=1, max_size=3)
    rows = [
        ScoreRow(c, t, rng.random((len(t), len(FEATURE_NAMES)), np.float32))
        for c, t in data.draw(st.lists(st.tuples(context, candidates), min_size=1, max_size=4))
    ]
    together = run_as_triton(
        ragged["click_model"], config, [click_model_row(r, num_candidates, 16) for r in rows]
    )
    for logits, row in zip(together, rows, strict=True):
        for place, (text, features) in enumerate(
            zip(row.candidate_ids, row.features_CF, strict=True)
        ):
            context_ids, candidate = np.array([row.context_ids]), np.array([[text[:16]]])
            feed = {
                "context_ids": context_ids,
                "context_mask": np.ones_like(context_ids),
                "candidate_ids": candidate,
                "candidate_mask": np.ones_like(candidate),
                "features": features[None, None],
            }
            alone = plain["click_model"].run(None, feed)[0][0, 0]
            assert logits[place] == pytest.approx(alone, abs=1e-4)


BAD_PROMPTS = {
    "an id too large": {"input_ids": [[130, 99_999]]},
    "a negative id": {"input_ids": [[-5]]},
    "no ids": {"input_ids": np.zeros((1, 0), np.int64)},
    "too many ids": {"input_ids": [[140] * 900]},
    "a slot out of range": {"slots": [[99_999, 4]]},
    "no new tokens": {"max_new_tokens": [[0, -3]]},
    "far too many new tokens": {"max_new_tokens": [[1 << 40, 9]]},
    "an empty range": {"first_token_range": [[300, 200]]},
}


@pytest.mark.parametrize("bad", BAD_PROMPTS)
def test_a_bad_prompt_does_not_change_its_neighbours(ragged, repositories, manifest, bad):
    config = config_of(repositories["onnxruntime"], model_name("generator", manifest))
    rung = Rung((4, 5), (6, 3))
    good = [generator_row(GenerateRow(list(range(130, 130 + n)), (130, 512), rung)) for n in (3, 9)]
    changed = {name: np.array(array, np.int64) for name, array in BAD_PROMPTS[bad].items()}
    expected = run_as_triton(ragged["generator"], config, good)
    rows = [good[0], {**good[0], **changed}, good[1]]
    got = run_as_triton(ragged["generator"], config, rows)
    width = expected.shape[2]
    assert (got[[0, 2], :, :width] == expected).all()
    assert (got[[0, 2], :, width:] == 0).all()


@pytest.mark.parametrize("lengths", [[9, 9], [-4, 2], [1 << 60, 1], [0, 0], [1, 1]])
def test_lengths_that_lie_do_not_reach_into_other_rows(ragged, repositories, manifest, lengths):
    config = config_of(repositories["onnxruntime"], model_name("click_model", manifest))
    features = np.zeros((2, len(FEATURE_NAMES)), np.float32)
    good = [
        click_model_row(ScoreRow([150, 151], [[n, 300], [301]], features), 2, 16)
        for n in (140, 160)
    ]
    expected = run_as_triton(ragged["click_model"], config, good)
    bad = {**good[0], "candidate_lengths": np.array([lengths])}
    got = run_as_triton(ragged["click_model"], config, [good[0], bad, good[1]])
    assert got[[0, 2]] == pytest.approx(expected, abs=1e-5)
    assert np.isfinite(got).all()


def test_a_repository_is_never_written_over_another(bundle, tmp_path):
    target = tmp_path / "repository"
    target.mkdir()
    (target / "precious").touch()
    with pytest.raises(ValueError, match="exists already"):
        write_repository(bundle, target, backend="python")
    assert [p.name for p in target.iterdir()] == ["precious"]


def test_a_changed_bundle_is_refused_and_leaves_nothing_behind(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "generator.onnx").write_bytes(b"other")
    with pytest.raises(ValueError, match="generator\\.onnx"):
        write_repository(copy, tmp_path / "repository", backend="python")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_cpu_that_lacks_a_feature_gets_the_fallback_or_a_refusal(bundle, manifest, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    shutil.copy(copy / "encoder.onnx", copy / "other.onnx")
    features = ["a_feature_of_no_cpu"]
    for fallback in (None, "other.onnx"):
        encoder = msgspec.structs.replace(
            manifest.encoder, required_cpu_features=features, fallback_file=fallback
        )
        (copy / "encoder.onnx").write_bytes(b"for other CPUs")
        (copy / "manifest.json").unlink()
        changed = sealed(copy, msgspec.structs.replace(manifest, encoder=encoder))
        if fallback is None:
            with pytest.raises(ValueError, match="a_feature_of_no_cpu, which this CPU lacks"):
                write_repository(copy, tmp_path / "no", backend="python")
    for backend in BACKENDS:
        write_repository(copy, tmp_path / backend, backend=backend)
        session(tmp_path / backend / model_name("encoder", changed) / "1/model.onnx")


def test_a_tokenizer_that_is_not_listed_is_refused(bundle, manifest, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    shutil.copy(copy / "tokenizer.json", copy / "encoder_tokenizer.json")
    encoder = msgspec.structs.replace(manifest.encoder, tokenizer="encoder_tokenizer.json")
    write_manifest(copy, msgspec.structs.replace(manifest, encoder=encoder))
    with pytest.raises(ValueError, match=r"encoder_tokenizer\.json: used but not listed"):
        write_repository(copy, tmp_path / "no", backend="python")


def test_gpus_get_their_accelerators_and_refuse_int8(bundle, manifest, tmp_path):
    cuda = ("cuda", {"use_tf32": "0"})
    tensorrt = ("tensorrt", {"precision_mode": "FP32"})
    accelerators_of: dict[DeviceKind, list[tuple[str, dict[str, str]]]]
    accelerators_of = {"cuda": [cuda], "tensorrt": [tensorrt, cuda]}
    for device, expected in accelerators_of.items():
        target = tmp_path / device
        names = write_repository(bundle, target, backend="onnxruntime", device=device)
        config = config_of(target, names[0])
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert [(a.name, dict(a.parameters)) for a in accelerators] == expected
        assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    quantised = shutil.copytree(bundle, tmp_path / "int8")
    generator = msgspec.structs.replace(manifest.generator, precision="int8")
    write_manifest(quantised, msgspec.structs.replace(manifest, generator=generator))
    with pytest.raises(ValueError, match="--precision fp16 or fp32"):
        write_repository(quantised, tmp_path / "no", backend="python", device="cuda")


def test_the_command_writes_a_repository_and_explains_mistakes(bundle, manifest, tmp_path):
    arguments = ["triton", "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(app, [*arguments, "--backend", "python", "--instances", "2"])
    assert run.exit_code == 0, run.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        model_name(r, manifest) for r in ROLES
    }
    again = CliRunner().invoke(app, [*arguments, "--backend", "python"])
    assert again.exit_code == 2
    assert "exists already" in again.output
