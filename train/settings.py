"""The sections of the training configuration: settings, defaults, and ranges.

Each checks itself. Knows nothing of files, or of how stages use it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from engine.formats.manifest import (
    MAX_QUERY_TOKENS,
    PromptSpec,
    ScenarioSpec,
    check_scenario_name,
)
from engine.formats.prompt import ANSWER, COOCCURRING, SESSION
from engine.formats.vocabulary import MAX_SLOTS

Size = Literal["tiny", "demo", "small", "base"]
Mode = Literal["slots", "list", "both", "beam"]
Objective = Literal["pl", "lipo", "dpo", "sdpo", "ctr-dpo"]
Places = str | Sequence[str]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, and unknown keys are an error."""


class LogsConfig(Section, frozen=True, kw_only=True):
    """Where the log tables are: a parquet file, a directory of them, a glob, or a list of these.

    Both empty: the simulated tables of the run.
    """

    searches: str | list[str] = ""
    # May stay empty where there is no impression log: then no click model.
    impressions: str | list[str] = ""

    def __post_init__(self) -> None:
        """Checks lists of places."""
        for name, places in (("searches", self.searches), ("impressions", self.impressions)):
            if isinstance(places, list) and (not all(places) or len(set(places)) < len(places)):
                raise ValueError(f"{name} is {places}, must name different places")


def places_of(places: Places) -> list[str]:
    """Returns the places of a table as a list; none for an empty string."""
    if isinstance(places, str):
        return [places] if places else []
    return list(places)


class SimulateConfig(Section, frozen=True, kw_only=True):
    """Simulated logs, for trying things out and for experiments where the truth is known."""

    queries: str = "examples/data/queries.tsv.gz"  # real queries that simulated users search
    heldout: str = "examples/data/heldout.txt.gz"  # real queries that occur nowhere in the log
    num_queries: int = 24_000  # distinct queries that users know
    num_searches: int = 200_000
    num_users: int = 20_000
    num_requests: int = 60_000  # panels shown, over all scenarios
    num_days: int = 30
    exploration_rate: float = 0.08  # share of panels with randomly swapped neighbours
    click_model: Literal["pbm", "cascade"] = "pbm"

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("num_queries", "num_searches", "num_users", "num_requests", "num_days"):
            _at_least(name, getattr(self, name), 1)
        _within("exploration_rate", self.exploration_rate, 0, 1)


class MineConfig(Section, frozen=True, kw_only=True):
    """From log tables to anonymous training tables."""

    min_users: int = 5  # k of k-anonymity: distinct users behind every text and every pair
    session_gap_s: int = 1800  # a longer pause starts a new session
    max_pair_steps: int = 5  # how far apart in a session two queries may be to form a pair
    min_pairs: int = 2  # occurrences of a pair, beside min_users
    max_session_queries: int = 5  # earlier queries kept as context
    max_session_searches: int = 100  # sessions with more are robots' and left out; 0: no limit
    association: Literal["npmi", "llr"] = "npmi"  # how strongly the queries of a pair belong
    near_duplicates: Literal["keep", "punctuation", "words"] = "keep"  # what is merged
    # The last share of searches, and of impressions: validation only. So are all searches from the
    # first held-out impression on.
    valid_share: float = 0.1
    unsafe_words: str = ""  # file with one word or phrase a line; queries with them are dropped
    engine: Literal["duckdb", "spark"] = "duckdb"
    spark_master: str = ""  # empty: this machine
    memory_limit_mb: int = 4096  # spilled to disk beyond it
    num_threads: int = 0  # 0: all cores

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("min_users", "session_gap_s", "max_pair_steps", "min_pairs"):
            _at_least(name, getattr(self, name), 1)
        _at_least("max_session_queries", self.max_session_queries, 0)
        _at_least("max_session_searches", self.max_session_searches, 0)
        _at_least("memory_limit_mb", self.memory_limit_mb, 64)
        _at_least("num_threads", self.num_threads, 0)
        _within("valid_share", self.valid_share, 0, 0.9)


class PromptConfig(Section, frozen=True, kw_only=True):
    """Lengths of the prompt in tokens; see engine.formats.manifest.PromptSpec."""

    max_tokens: int = 64
    max_query_tokens: int = MAX_QUERY_TOKENS
    max_item_tokens: int = 10
    max_cooccurring: int = 5
    side_information_kinds: list[str] = msgspec.field(
        default_factory=lambda: [SESSION, ANSWER, COOCCURRING]
    )
    instruction: str = ""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("max_query_tokens", "max_item_tokens"):
            _at_least(name, getattr(self, name), 1)
        _at_least("max_cooccurring", self.max_cooccurring, 0)
        # scenario, <query>, <respond>
        _at_least("max_tokens", self.max_tokens, self.max_query_tokens + 3)
        if len(set(self.side_information_kinds)) != len(self.side_information_kinds):
            raise ValueError("side_information_kinds names a kind twice")

    def spec(self) -> PromptSpec:
        """Returns the same as the bundle's type."""
        return msgspec.convert(msgspec.to_builtins(self), PromptSpec)


class ScenarioConfig(Section, frozen=True, kw_only=True):
    """One suggestion panel; see engine.formats.manifest.ScenarioSpec."""

    name: str
    description: str
    completes_prefix: bool = False
    has_auxiliary_text: bool = False
    num_suggestions: int = 6
    num_slots: int = 8
    max_new_tokens: int = 8
    max_auxiliary_tokens: int = 16

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_scenario_name(self.name)
        for name in ("num_suggestions", "max_new_tokens", "max_auxiliary_tokens"):
            _at_least(name, getattr(self, name), 1)
        _at_least("num_slots", self.num_slots, 1 + self.has_auxiliary_text)
        most = MAX_SLOTS if self.has_auxiliary_text else MAX_SLOTS - 1
        if self.num_slots > most:
            raise ValueError(f"num_slots is {self.num_slots}, must be at most {most}")
        if self.completes_prefix and self.has_auxiliary_text:
            raise ValueError("a scenario cannot both complete prefixes and have auxiliary text")

    def spec(self, position_ctr: list[float]) -> ScenarioSpec:
        """Returns the same as the bundle's type."""
        fields = {**msgspec.to_builtins(self), "position_ctr": position_ctr}
        return msgspec.convert(fields, ScenarioSpec)


class EncoderConfig(Section, frozen=True, kw_only=True):
    """Training of the query encoder."""

    base_checkpoint: str = ""  # size base: hub id or directory; empty: MiniLM
    num_epochs: float = 1
    batch_size: int = 128  # in-batch negatives: larger is better
    learning_rate: float = 1e-3
    temperature: float = 0.05
    bf16: bool = False  # compute in bfloat16 where the hardware does that fast
    max_train_s: float = 0  # stop cleanly after that long; 0: no limit

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check_training(self.num_epochs, self.batch_size, self.learning_rate, self.max_train_s)
        _at_least("batch_size", self.batch_size, 2)
        _within("temperature", self.temperature, 1e-4, 10)


class GeneratorConfig(Section, frozen=True, kw_only=True):
    """Supervised fine-tuning of the generator."""

    mode: Mode = "beam"
    base_checkpoint: str = ""  # size base: hub id, directory or GGUF file; empty: SmolLM2
    teacher_lists: str = (
        ""  # parquet file of lists to learn beside the log (train.generation.teacher)
    )
    num_epochs: float = 1
    batch_size: int = 32  # examples (prompt with all of its suggestions)
    learning_rate: float = 2e-3  # of embeddings and norms; of everything where Muon is off
    matrix_learning_rate: float = 0.02  # Muon's (train.models.optimizer); 0: AdamW for everything
    warmup_share: float = 0.03
    weight_decay: float = 0.01
    cold_share: float = 0.3  # examples without side information from the index
    max_contexts_per_query: int = 64  # head queries do not crowd out the others
    bf16: bool = False  # compute in bfloat16 where the hardware does that fast
    max_train_s: float = 0  # stop cleanly after that long; 0: no limit
    checkpoint_steps: int = 500

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check_training(self.num_epochs, self.batch_size, self.learning_rate, self.max_train_s)
        _within("matrix_learning_rate", self.matrix_learning_rate, 0, 1)
        _within("warmup_share", self.warmup_share, 0, 1)
        _within("weight_decay", self.weight_decay, 0, 1)
        _within("cold_share", self.cold_share, 0, 1)
        _at_least("max_contexts_per_query", self.max_contexts_per_query, 1)
        _at_least("checkpoint_steps", self.checkpoint_steps, 1)


class ClickModelConfig(Section, frozen=True, kw_only=True):
    """Training of the click model."""

    num_epochs: float = 1
    batch_size: int = 32  # requests, each with all shown candidates
    max_requests: int = 400_000  # of the log, drawn by their ids; held in memory; 0: all
    session_share: float = 1.0  # requests made from sessions, read before clicks, per logged one
    hidden_log_share: float = 0.3  # candidates without popularity and association in training
    hidden_text_share: float = 0.4  # candidates trained on by their features alone
    learning_rate: float = 1e-3  # of embeddings and norms; of everything where Muon is off
    matrix_learning_rate: float = 0.005  # Muon's (train.models.optimizer); 0: AdamW for everything
    weight_decay: float = 0.01
    bf16: bool = False  # compute in bfloat16 where the hardware does that fast
    max_train_s: float = 0  # stop cleanly after that long; 0: no limit

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check_training(self.num_epochs, self.batch_size, self.learning_rate, self.max_train_s)
        _at_least("max_requests", self.max_requests, 0)
        _within("session_share", self.session_share, 0, 100)
        _within("matrix_learning_rate", self.matrix_learning_rate, 0, 1)
        _within("weight_decay", self.weight_decay, 0, 1)
        _within("hidden_log_share", self.hidden_log_share, 0, 1)
        _within("hidden_text_share", self.hidden_text_share, 0, 1)


class AlignmentConfig(Section, frozen=True, kw_only=True):
    """Alignment of the generator with the click model, in rounds."""

    num_rounds: int = 0  # 0: the generator stays as fine-tuned
    num_prompts: int = 2000  # of a round
    num_valid_prompts: int = 300  # whose lists say whether a round is accepted
    num_lists: int = 2  # drawn for each prompt; in slots or list form 8 are better
    num_kept: int = 16  # texts that are learnt from; in slots or list form lists, 4 are better
    temperature: float = 1.0
    cold_share: float = (
        0.3  # prompts without side information, as if the log did not know the query
    )
    confidence: float = 0.5  # texts compete by reward * (how often drawn, or pi) ** confidence
    objective: Objective = "pl"
    beta: float = 0.3  # of the objective: the larger, the closer to the policy before
    anchor_weight: float = 0.0  # of the negative log-likelihood of the best list, nats per token
    # 0: expected click probability; from 0.5 on, the level of a lower bound of it
    pessimism: float = 0.0
    relevance_floor: float = 0.0  # least share of letter trigrams common with query and session
    min_gap: float = 0.02  # lists closer in reward, relative to the best, are not told apart
    max_kl: float = 40.0  # nats a list between the policies before and after a round
    batch_size: int = 8  # prompts
    learning_rate: float = 3e-4
    matrix_learning_rate: float = 0.0  # Muon's (train.models.optimizer); 0: AdamW for everything
    warmup_share: float = 0.1
    bf16: bool = False  # compute in bfloat16 where the hardware does that fast

    def __post_init__(self) -> None:
        """Checks ranges."""
        _at_least("num_rounds", self.num_rounds, 0)
        for name in ("num_prompts", "num_valid_prompts", "batch_size"):
            _at_least(name, getattr(self, name), 1)
        _at_least("num_lists", self.num_lists, 2)
        _at_least("num_kept", self.num_kept, 2)
        _within("temperature", self.temperature, 0.1, 10)
        _within("cold_share", self.cold_share, 0, 1)
        _within("confidence", self.confidence, 0, 10)
        _within("beta", self.beta, 1e-4, 100)
        _within("anchor_weight", self.anchor_weight, 0, 100)
        if self.pessimism != 0 and not 0.5 <= self.pessimism < 1:  # below it, doubt would pay
            raise ValueError(
                f"pessimism is {self.pessimism}, must be 0 (off) or at least 0.5 and below 1"
            )
        _within("relevance_floor", self.relevance_floor, 0, 1)
        _within("min_gap", self.min_gap, 0, 1)
        _within("max_kl", self.max_kl, 1e-3, 1e6)
        _within("learning_rate", self.learning_rate, 1e-9, 1)
        _within("matrix_learning_rate", self.matrix_learning_rate, 0, 1)
        _within("warmup_share", self.warmup_share, 0, 1)


class IndexConfig(Section, frozen=True, kw_only=True):
    """The co-occurrence index: HNSW parameters and list lengths."""

    m: int = 48
    ef_construction: int = 200
    ef_search: int = 0  # 0: the least that finds `min_recall` of the ten nearest queries
    min_recall: float = 0.985
    max_edges: int = 32  # co-occurring queries kept per query
    num_threads: int = 1  # more build faster, but no two builds are the same

    def __post_init__(self) -> None:
        """Checks ranges."""
        _at_least("m", self.m, 2)
        _at_least("ef_search", self.ef_search, 0)
        for name in ("ef_construction", "max_edges", "num_threads"):
            _at_least(name, getattr(self, name), 1)
        _within("min_recall", self.min_recall, 0.5, 1)


# Of what starts from a public checkpoint: at the rates for random weights it would unlearn.
SIZE_DEFAULTS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "base": {
        "encoder": {"batch_size": 256, "learning_rate": 5e-5},
        "generator": {"batch_size": 16, "learning_rate": 2e-4, "matrix_learning_rate": 0.0},
        "alignment": {"learning_rate": 1e-5},
    }
}


def default_scenarios() -> list[ScenarioConfig]:
    """Returns the three panels of the paper."""
    return [
        ScenarioConfig(name="suggestion", description="what to search next"),
        ScenarioConfig(
            name="completion",
            description="how to finish the query being typed",
            completes_prefix=True,
        ),
        ScenarioConfig(
            name="clarification",
            description="a question about an ambiguous query, and options that answer it",
            has_auxiliary_text=True,
            num_suggestions=5,
        ),
    ]


def _at_least(name: str, value: float, minimum: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, must be a finite number")
    if value < minimum:
        raise ValueError(f"{name} is {value}, must be at least {minimum}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, must be between {low} and {high}")


def _check_training(
    num_epochs: float, batch_size: int, learning_rate: float, max_train_s: float
) -> None:
    _within("num_epochs", num_epochs, 1e-6, 1e6)
    _at_least("batch_size", batch_size, 1)
    _within("learning_rate", learning_rate, 1e-9, 1)
    _at_least("max_train_s", max_train_s, 0)
