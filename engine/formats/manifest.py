"""The manifest of a bundle: what is in the directory and how to use it.

`export` writes it, `engine` reads and verifies it. One directory is one immutable release.
Knows nothing of how models are run or indexes searched.
"""

import hashlib
import re
from collections.abc import Set
from pathlib import Path
from typing import Literal

import msgspec

SCHEMA_VERSION = 1
MAX_CANDIDATE_TOKENS = 16  # the click model reads no more of a candidate, trained or serving
MAX_QUERY_TOKENS = 24  # of a query: what prompts read if not told otherwise, and token statistics
MAX_ENCODER_TOKENS = 64  # the least that a trained encoder's position table has
MANIFEST_FILE = "manifest.json"


def check_scenario_name(name: str) -> None:
    """Raises ValueError unless requests can name a scenario so: see scenario.proto."""
    if not re.fullmatch("[a-z0-9_]{1,64}", name):
        raise ValueError(
            f"scenario name {name!r} must be 1 to 64 of the characters a to z, 0 to 9 and _"
        )


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all manifest parts: immutable, and unknown keys are an error."""


class ScenarioSpec(_Part, frozen=True, kw_only=True):
    """One suggestion panel."""

    name: str
    description: str
    completes_prefix: bool = False  # suggestions must start with the query
    has_auxiliary_text: bool = False  # slot 0 writes a lead-in, e.g. the clarifying question
    num_suggestions: int = 6  # default when a request asks for 0
    num_slots: int = 8  # sequences generated per request (slots mode), auxiliary text included
    max_new_tokens: int = 8  # per suggestion
    max_auxiliary_tokens: int = 16
    # p(seen | position), 1 at the first; without a click model, the log's click rates by position
    # relative to the first
    position_ctr: list[float]

    def __post_init__(self) -> None:
        """Checks the name."""
        check_scenario_name(self.name)


class PromptSpec(_Part, frozen=True, kw_only=True):
    """How a request becomes token ids; lengths are in tokens."""

    max_tokens: int = 64
    max_query_tokens: int = MAX_QUERY_TOKENS
    max_item_tokens: int = 10
    max_cooccurring: int = 5
    side_information_kinds: list[str]
    instruction: str = ""  # text put before everything else, for models that follow instructions


class ModelSpec(_Part, frozen=True, kw_only=True):
    """One ONNX file and the names, element types and shapes of its inputs and outputs."""

    file: str
    precision: str  # "fp32", "int8" or "fp16"
    inputs: dict[str, list[str | int]]
    outputs: dict[str, list[str | int]]
    tokenizer: str = "tokenizer.json"
    required_cpu_features: list[str] = []  # e.g. "avx512_vnni"; else the fallback is used
    fallback_file: str | None = None


class GeneratorSpec(ModelSpec, frozen=True, kw_only=True):
    """The generator: decoding mode and limits of its graph."""

    mode: str  # "slots", "list" or "beam"
    max_prompt_tokens: int
    max_new_tokens: int  # upper limit over all slots that the graph's position table allows


class ClickModelSpec(ModelSpec, frozen=True, kw_only=True):
    """The click model: its features and the calibration of its logit."""

    feature_names: list[str]
    statistics: str = ""  # file: how tokens occur in the log
    # scenario -> (slope, intercept): p(click | seen) = sigmoid(slope * logit + intercept)
    calibration: dict[str, tuple[float, float]]
    # the same for texts that the log does not know; a scenario that it lacks makes no difference
    unknown_calibration: dict[str, tuple[float, float]] = {}
    max_candidate_tokens: int = MAX_CANDIDATE_TOKENS


class IndexSpec(_Part, frozen=True, kw_only=True):
    """The co-occurrence index."""

    directory: str = "index"
    num_queries: int
    embedding_dim: int
    metric: Literal["ip"] = "ip"  # inner product of unit vectors
    m: int
    ef_construction: int
    ef_search: int
    min_recall: float = 0.0  # of the ten nearest queries, for which ef_search was chosen; 0: given
    encoder_sha256: str  # of the encoder file whose embeddings are indexed
    min_users: int  # k of k-anonymity
    counted: str  # what k counts: "users" or "sessions"
    association: str | None = None  # of pairs: "npmi" or "llr"; None: an older release made it


class Manifest(_Part, frozen=True, kw_only=True):
    """Everything the engine must know about a bundle."""

    schema_version: int = SCHEMA_VERSION
    bundle_id: str
    created_at: str  # RFC 3339
    prompt: PromptSpec
    scenarios: list[ScenarioSpec]
    encoder: ModelSpec | None = None
    generator: GeneratorSpec | None = None
    click_model: ClickModelSpec | None = None
    index: IndexSpec | None = None
    parity: dict[str, dict[str, float]] = {}  # measured at export, per model
    quality: dict[str, float] = {}
    provenance: dict[str, str] = {}
    files: dict[str, str]  # path relative to the bundle -> sha256

    def has_models_of(self, other: "Manifest") -> bool:
        """Returns whether only the index tells two bundles apart: what models read and write."""
        return self._without_index() == other._without_index()

    def model_files(self) -> set[str]:
        """Returns the files that models need, by their names in `files`."""
        specs = [s for s in (self.encoder, self.generator, self.click_model) if s is not None]
        names = {"tokenizer.json", *(n for s in specs for n in (s.file, s.tokenizer))}
        names |= {s.fallback_file for s in specs if s.fallback_file}
        if self.click_model is not None and self.click_model.statistics:
            names.add(self.click_model.statistics)
        return names

    def _without_index(self) -> tuple[object, ...]:
        models = (self.encoder, self.generator, self.click_model)
        files = {n: self.files.get(n) for n in self.model_files()}
        return (models, self.prompt, self.scenarios, files)


class BundleError(ValueError):
    """A bundle cannot be used; the message names the file and what is wrong with it."""


def sha256_of(path: Path) -> str:
    """Returns the hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json; every other file must be in place and listed in `files`."""
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (directory / MANIFEST_FILE).write_bytes(encoded + b"\n")


def read_manifest(directory: Path) -> Manifest:
    """Reads manifest.json without checking the files it lists.

    Raises:
        BundleError: there is no manifest, or it has a wrong schema version or content.
    """
    path = directory / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); is this a bundle?") from None
    try:
        version = msgspec.json.decode(content, type=dict[str, object]).get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{path}: schema_version is {version!r}, this engine reads {SCHEMA_VERSION}; "
                "export the bundle again with the matching release"
            )
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}") from None


def verify_files(
    directory: Path,
    manifest: Manifest,
    used: Set[str] = frozenset(),
    unused: Set[str] = frozenset(),
) -> None:
    """Checks every listed file against its sha256, and that all `used` files are listed.

    Args:
        directory: Of the bundle.
        manifest: Of the bundle.
        used: Files that will be read.
        unused: Files that will not, so that they may be missing.

    Raises:
        BundleError: naming the first file that is missing, changed, unreadable, or not listed.
    """
    for name in sorted(used - manifest.files.keys()):
        raise BundleError(f"{directory / name}: used but not listed in {MANIFEST_FILE}")
    for name, expected in manifest.files.items():
        if name in unused:
            continue
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise BundleError(f"{path}: lies outside the bundle")
        try:
            if not path.is_file():
                raise BundleError(f"{path}: listed in {MANIFEST_FILE} but missing")
            found = sha256_of(path)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
        if found != expected:
            raise BundleError(f"{path}: content differs from its sha256 in {MANIFEST_FILE}")
