"""A loaded bundle: everything of one release that answers need, verified.

Knows nothing of requests. Immutable: another release is loaded aside and swapped in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from engine.execution.models import ClickModel, Encoder, Generator
from engine.execution.runtime import Runtime, signature, usable_file
from engine.formats.features import FEATURE_NAMES
from engine.formats.index import GRAPH, CooccurrenceIndex
from engine.formats.manifest import (
    MANIFEST_FILE,
    MAX_ENCODER_TOKENS,
    BundleError,
    Manifest,
    ModelSpec,
    ScenarioSpec,
    read_manifest,
    verify_files,
)
from engine.formats.prompt import PromptRenderer
from engine.formats.token_statistics import TokenStatistics
from engine.formats.vocabulary import LIST, Vocabulary, read_tokenizer_file
from engine.scheduling.planner import Rung, generation_rungs

T = TypeVar("T")
_NUM_SELF_QUERIES = 64
_MAX_LOST_SHARE = 0.1  # of the self-queries; HNSW is approximate


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One release. Parts that it lacks are None: it still serves without them.

    Models are None, too, if they run on a server: the manifest says which ones there are.
    """

    manifest: Manifest
    scenarios: dict[str, ScenarioSpec]
    vocabulary: Vocabulary
    renderer: PromptRenderer
    encoder: Encoder | None
    encoder_ids: Callable[[str], Sequence[int]]  # the encoder may have a tokenizer of its own
    generator: Generator | None
    rungs: dict[str, tuple[Rung, ...]]  # by scenario; empty without a generator
    click_model: ClickModel | None
    statistics: TokenStatistics | None  # of the click model's features
    index: CooccurrenceIndex | None


def load_bundle(directory: Path, runtime: Runtime | None, *, has_graph: bool = True) -> Bundle:
    """Reads and verifies a bundle. Takes seconds; not for the event loop.

    Args:
        directory: Where it is.
        runtime: Opens its graphs; None if they run elsewhere, whatever they need of a CPU.
        has_graph: False if the nearest queries are found elsewhere; the index's graph, its largest
            file, may be missing then.

    Raises:
        BundleError: naming the file that is missing, changed, or does not fit the others.
    """
    manifest = read_manifest(directory)
    if manifest.generator is None and manifest.index is None:
        raise BundleError(f"{directory}: has neither generator nor index, so nothing to suggest")
    unused = set[str]()
    if manifest.index is not None and not has_graph:
        unused = {f"{manifest.index.directory}/{GRAPH}"}
    verify_files(directory, manifest, _files_in_use(directory, manifest) - unused, unused)
    prompt = manifest.prompt

    def once(name: str, load: Callable[[Path], T]) -> T:
        path = directory / name
        if runtime is None:
            return load(path)
        return runtime.once(manifest.files.get(name, name), lambda: load(path))

    try:
        vocabulary = once("tokenizer.json", Vocabulary.load)
    except ValueError as error:
        raise BundleError(str(error)) from error
    try:
        renderer = PromptRenderer(vocabulary, prompt, manifest.scenarios)
    except ValueError as error:
        raise BundleError(f"{directory / 'tokenizer.json'}: {error}") from error
    encoder, encoder_ids = None, vocabulary.ids_of
    if spec := manifest.encoder:
        if runtime is not None:
            encoder = Encoder(_session(directory, spec, manifest, runtime), MAX_ENCODER_TOKENS)
        encoder_ids = _tokenizer(directory, spec, vocabulary)
    generator = None
    if spec := manifest.generator:
        if spec.mode not in ("slots", "list", "beam"):
            raise BundleError(
                f"{directory / MANIFEST_FILE}: generator mode is {spec.mode!r}, "
                "this engine runs 'slots', 'list' and 'beam'"
            )
        if spec.max_prompt_tokens < prompt.max_tokens:
            raise BundleError(
                f"{directory / spec.file}: reads {spec.max_prompt_tokens} tokens, but prompts "
                f"have up to {prompt.max_tokens}"
            )
        if runtime is not None:
            generator = Generator(
                _session(directory, spec, manifest, runtime), spec.max_prompt_tokens
            )
    click_model = statistics = None
    if spec := manifest.click_model:
        if tuple(spec.feature_names) != FEATURE_NAMES:
            raise BundleError(
                f"{directory / spec.file}: was trained on the features "
                f"{', '.join(spec.feature_names)}; this engine computes {', '.join(FEATURE_NAMES)}"
            )
        statistics = once(spec.statistics, TokenStatistics.load)
        if statistics.size != vocabulary.size:
            raise BundleError(
                f"{directory / spec.statistics}: counts {statistics.size} tokens, tokenizer.json "
                f"has {vocabulary.size}"
            )
        if runtime is not None:
            click_model = ClickModel(
                _session(directory, spec, manifest, runtime),
                max_context_tokens=prompt.max_tokens,
                max_candidate_tokens=spec.max_candidate_tokens,
            )
    return Bundle(
        manifest=manifest,
        scenarios={s.name: s for s in manifest.scenarios},
        vocabulary=vocabulary,
        renderer=renderer,
        encoder=encoder,
        encoder_ids=encoder_ids,
        generator=generator,
        rungs={s.name: _rungs(s, manifest, renderer) for s in manifest.scenarios},
        click_model=click_model,
        statistics=statistics,
        index=_index(directory, manifest, has_graph=has_graph),
    )


def _files_in_use(directory: Path, manifest: Manifest) -> set[str]:
    """Returns the files that will be read, by their names in the manifest."""
    used = manifest.model_files()
    if manifest.index is not None:
        folder = directory / manifest.index.directory
        used |= {str(p.relative_to(directory)) for p in folder.glob("*.*") if p.is_file()}
    return used


def _rungs(
    scenario: ScenarioSpec, manifest: Manifest, renderer: PromptRenderer
) -> tuple[Rung, ...]:
    if manifest.generator is None:
        return ()
    list_id = renderer.vocabulary.control_id(LIST)
    slot_ids = renderer.slot_ids(scenario.name, manifest.generator.mode)
    return generation_rungs(scenario, manifest.generator, slot_ids, list_id)


def _session(directory: Path, spec: ModelSpec, manifest: Manifest, runtime: Runtime):
    try:
        file = usable_file(spec)
    except BundleError as error:
        raise BundleError(f"{directory}: {error}") from None
    path = directory / file
    if spec.precision == "int8" and runtime.device.kind != "cpu":
        raise BundleError(
            f"{path}: int8 graphs run on the CPU only, models.device is {runtime.device.kind!r}: "
            "export with --precision fp16"
        )
    session = runtime.open(path, manifest.files[file])
    for kind, declared, actual in (
        ("inputs", spec.inputs, signature(session.get_inputs())),
        ("outputs", spec.outputs, signature(session.get_outputs())),
    ):
        if declared != actual:
            raise BundleError(f"{path}: {kind} are {actual}, but {MANIFEST_FILE} says {declared}")
    return session


def _tokenizer(
    directory: Path, spec: ModelSpec, vocabulary: Vocabulary
) -> Callable[[str], Sequence[int]]:
    if spec.tokenizer == "tokenizer.json":
        return vocabulary.ids_of
    try:
        own = read_tokenizer_file(directory / spec.tokenizer)
    except ValueError as error:
        raise BundleError(str(error)) from error
    own.no_padding()
    own.no_truncation()
    own.encode_special_tokens = True  # user text is never a control token
    return lambda text: own.encode(text).ids


def _index(directory: Path, manifest: Manifest, *, has_graph: bool) -> CooccurrenceIndex | None:
    spec = manifest.index
    if spec is None:
        return None
    path = directory / spec.directory
    if manifest.encoder is not None:
        encoder_hash = manifest.files.get(manifest.encoder.file)
        if spec.encoder_sha256 != encoder_hash:
            raise BundleError(
                f"{path}: was embedded by the encoder {spec.encoder_sha256[:12]}..., but "
                f"{manifest.encoder.file} is {encoder_hash and encoder_hash[:12]}..."
            )
        dim = manifest.encoder.outputs["embedding"][-1]
        if isinstance(dim, int) and dim != spec.embedding_dim:
            raise BundleError(
                f"{path}: holds vectors of {spec.embedding_dim} numbers, "
                f"{manifest.encoder.file} makes {dim}"
            )
    index = CooccurrenceIndex(path, spec, has_graph=has_graph)
    lost = index.lost_rows(_NUM_SELF_QUERIES) if has_graph else []
    if len(lost) > _MAX_LOST_SHARE * _NUM_SELF_QUERIES:
        raise BundleError(
            f"{path / GRAPH}: {len(lost)} of {_NUM_SELF_QUERIES} vectors do not find "
            "themselves; build the index again"
        )
    return index
