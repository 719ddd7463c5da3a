"""Settings of the engine. Knows nothing of how they are used.

Each setting is taken from the first of: command-line flag, environment variable
`QUERYREC_<SECTION>_<FIELD>` (for example `QUERYREC_SERVER_PORT`), the TOML file, its default.
All mistakes are reported together. Texts from users appear in no setting.
"""

import base64
import binascii
import re
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, cast

import msgspec
from msgspec import Meta

from engine.feedback.attribution import KeyRing
from engine.telemetry.logs import LogFormat, LogLevel

ENV_PREFIX = "QUERYREC_"

Milliseconds = Annotated[float, Meta(gt=0, le=60_000)]
DeviceKind = Literal["cpu", "cuda", "tensorrt"]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
# What Kubernetes sets in every container for a service named queryrec or queryrec-NAME.
_FROM_KUBERNETES = re.compile(
    r"\w+_SERVICE_(HOST|PORT(_\w+)?)=.*|\w+_PORT(_\d+_(TCP|UDP|SCTP))?=\w+://.*"
    r"|\w+_PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*"
).fullmatch


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how calls are taken."""

    host: str = "127.0.0.1"
    """Address to listen on; "::" for all. An IPv6 address may be in brackets."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 50_051
    """0 picks a free port and prints it."""
    default_budget_ms: Milliseconds = 100.0
    """Time for an answer where the call has no deadline."""
    reserve_ms: Annotated[float, Meta(ge=0, le=1000)] = 4.0
    """Kept back of every deadline for ranking, writing and sending the answer."""
    lame_duck_s: Annotated[float, Meta(ge=0, le=600)] = 0.25
    """On SIGTERM, calls are answered for this long although health says NOT_SERVING."""
    grace_s: Annotated[float, Meta(ge=0, le=600)] = 10.0
    """After that, calls in flight may take this long before they are cut."""
    max_concurrent_calls: Count = 1000
    """Further calls are read and then refused with RESOURCE_EXHAUSTED; per process."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that share the port. 1: no other process than this one."""
    watch_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """Seconds between looks at whether another bundle is there. 0: only on SIGHUP."""
    canary_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of sessions that the bundle of --canary answers."""


class ModelsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How models are run."""

    num_threads: Annotated[int, Meta(ge=0, le=512)] = 0
    """Threads of the pool that all models of a process share. 0: as many as all processes together
    may use, divided by their number, less one for everything else, and at least one."""
    shared_thread_pool: bool = True
    """False gives each model threads of its own: slower, but needed where the process runs ONNX
    Runtime sessions that are not the engine's."""
    device: DeviceKind = "cpu"
    """Where models run; others than "cpu" need ONNX Runtime for GPUs and an fp16 or fp32 bundle."""
    device_id: Annotated[int, Meta(ge=0, le=63)] = 0
    """Which GPU."""
    tensorrt_cache: str = ""
    """Directory where TensorRT keeps what it compiled; empty: compiled again at each start."""
    max_batch_size: Annotated[int, Meta(ge=1, le=256)] = 8
    """Most rows of a model run. A row that finds no place in it waits for the next."""
    max_waiting: Count = 256
    """Rows waiting for a model; further requests get what needs no model, if there is anything."""
    cost_quantile: Annotated[float, Meta(ge=0.5, le=0.999)] = 0.9
    """Share of model runs that should not take longer than planned."""


class TritonConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Triton Inference Server that runs the models in place of this process."""

    url: str = ""
    """gRPC address, HOST:PORT. Empty: models run in this process."""
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 16
    """Rows on their way at the same time; further ones wait here, most urgent first."""


class MilvusConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Milvus server that finds nearest queries in place of this process."""

    uri: str = ""
    """http://HOST:PORT or https://HOST:PORT. Empty: the bundle's own index is searched."""
    token_file: str = ""
    """File with user:password, or an API key. Empty: none is sent."""
    database: str = ""
    """Empty: the server's default."""
    timeout_ms: Milliseconds = 20.0
    """A search that takes longer is left out; one gets less where the call's deadline is near."""


class RankingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How candidates are found and ordered."""

    max_log_candidates: Annotated[int, Meta(ge=1, le=32)] = 24
    """Candidates taken from past searches."""
    num_nearest: Annotated[int, Meta(ge=1, le=256)] = 16
    """Past queries nearest to an unknown one whose co-occurrence lists are merged."""
    diversity: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Share of its score that a suggestion loses if it says the same as one above it."""
    completion_weight: Annotated[float, Meta(ge=0, le=4)] = 0.4
    """How much it counts how probable a completion is as what is being typed, by the log and a
    generator of beams together: completions compete by click probability * likelihood ** weight,
    and by likelihood alone where nothing scores them. The next two weights are of other panels,
    and of completions whose generator does not say how probable its texts are."""
    generator_weight: Annotated[float, Meta(ge=0, le=4)] = 0.1
    """How much the order counts in which a generator of beams wrote its texts, most probable first:
    candidates compete by click probability * (place from 1) ** -weight, times what
    `popularity_weight` adds. What it did not write comes after all it wrote."""
    popularity_weight: Annotated[float, Meta(ge=0, le=4)] = 0.3
    """How much it counts that people search a text: candidates also compete by (1 + searches in
    the log) ** weight."""
    exploration_rate: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of answers in which neighbours may be swapped, with known probability."""
    blocklist: str = ""
    """File of words and phrases, one a line, that no suggestion may contain. Empty: none."""


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Generations kept in memory."""

    max_bytes: Annotated[int, Meta(ge=0)] = 64 << 20
    """0 turns the cache off."""
    ttl_s: Annotated[float, Meta(gt=0, le=31_536_000)] = 600.0
    """A generation older than this is made anew."""


class FeedbackConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Attribution tokens and the feedback log."""

    directory: Annotated[str, Meta(min_length=1)] = "feedback"
    """Where events are written."""
    keys_file: str = ""
    """File with lines `<key id> <base64 secret>`; the first signs, all verify. Empty: a key is
    made at start, so tokens do not outlive the process or reach other replicas: demos only."""


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Prometheus finds the metrics."""

    host: str = "127.0.0.1"
    """As that of the server."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    """HTTP port; 0: metrics are not served. Each further worker has the next one up."""


class TracingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where traces go."""

    endpoint: str = ""
    """URL of an OpenTelemetry collector's OTLP gRPC receiver. Empty: no traces."""
    sample_rate: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """Share of calls that are traced where their caller has not decided."""


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, on stderr."""

    format: LogFormat = "json"
    """Lines: "json", or "text" for people."""
    level: LogLevel = "info"
    """Least level; "debug" has a line per call."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings."""

    server: ServerConfig = ServerConfig()
    models: ModelsConfig = ModelsConfig()
    triton: TritonConfig = TritonConfig()
    milvus: MilvusConfig = MilvusConfig()
    ranking: RankingConfig = RankingConfig()
    cache: CacheConfig = CacheConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()
    log: LogConfig = LogConfig()


def load_config(
    path: Path | None, environment: Mapping[str, str], flags: Mapping[str, object]
) -> Config:
    """Returns the effective configuration.

    Args:
        path: TOML file, or None.
        environment: Such as `os.environ`; only names with the prefix are looked at.
        flags: Values by "section.field"; None where the flag was not given.

    Raises:
        ValueError: naming every setting that is unknown or out of range.
    """
    problems: list[str] = []
    given: dict[str, object] = {}  # "section.field" -> value, later sources overwrite
    if path is not None:
        given |= _from_file(path, problems)
    fields = {
        f"{section.name}.{field.name}": field.type
        for section in msgspec.structs.fields(Config)
        for field in msgspec.structs.fields(section.type)
    }
    by_variable = {ENV_PREFIX + name.upper().replace(".", "_"): name for name in fields}
    from_environment: set[str] = set()
    for variable, value in environment.items():
        if not variable.startswith(ENV_PREFIX) or _FROM_KUBERNETES(f"{variable}={value}"):
            continue
        if variable in by_variable:
            given[by_variable[variable]] = value
            from_environment.add(by_variable[variable])
        else:
            problems.append(f"environment variable {variable} is no setting")
    for name, value in flags.items():
        if value is not None:
            given[name] = value
            from_environment.discard(name)
    sections: dict[str, dict[str, object]] = {}
    for name, value in given.items():
        if name not in fields:
            problems.append(f"{name} is no setting")
            continue
        section, field = name.split(".")
        try:
            sections.setdefault(section, {})[field] = msgspec.convert(
                value, fields[name], strict=name not in from_environment
            )
        except msgspec.ValidationError as error:
            problems.append(f"{name} is {value!r}: {error}")
    if problems:
        raise ValueError("configuration:\n  " + "\n  ".join(sorted(problems)))
    return msgspec.convert(sections, Config)


def describe(config: Config) -> str:
    """Returns the configuration as TOML."""
    lines: list[str] = []
    for section, content in msgspec.to_builtins(config).items():
        lines.append(f"[{section}]")
        lines += [f"{k} = {msgspec.json.encode(v).decode()}" for k, v in content.items()]
    return "\n".join(lines)


def load_keys(keys_file: str) -> KeyRing:
    """Returns the signing keys of a file; a fresh one if the name is empty.

    Raises:
        ValueError: the file cannot be read, a line is not `<key id> <base64 secret>`, or two lines
            have the same id.
    """
    if not keys_file:
        key_id = f"ephemeral-{secrets.token_hex(4)}"  # after a restart it is unknown, not forged
        return KeyRing(active_key_id=key_id, secrets={key_id: secrets.token_bytes(32)})
    try:
        lines = Path(keys_file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{keys_file}: signing keys cannot be read: {error}") from None
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            key_id, encoded = line.split()
            secret = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise ValueError(f"{keys_file}:{number}: expected `<key id> <base64 secret>`") from None
        if key_id in keys:
            raise ValueError(f"{keys_file}:{number}: key {key_id!r} is there twice; ids are unique")
        keys[key_id] = secret
    if not keys:
        raise ValueError(f"{keys_file}: holds no signing key")
    return KeyRing(active_key_id=next(iter(keys)), secrets=keys)


def _from_file(path: Path, problems: list[str]) -> dict[str, object]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    given: dict[str, object] = {}
    for section, values in content.items():
        if not isinstance(values, dict):
            problems.append(f"{section} is no section")
            continue
        entries = cast("dict[str, object]", values)
        given |= {f"{section}.{field}": value for field, value in entries.items()}
    return given
