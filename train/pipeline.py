"""The stages of training, from logs to checkpoints: what each reads, writes and depends on.

Imports what a stage needs only when it runs, so the command line answers at once. Knows nothing
of models.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from engine.formats.manifest import sha256_of
from train.config import TrainConfig
from train.mining.personal import RULES_VERSION
from train.mining.places import files_of
from train.settings import (
    AlignmentConfig,
    ClickModelConfig,
    EncoderConfig,
    GeneratorConfig,
    Places,
    places_of,
)
from train.stages import Stage

SIMULATED = "simulated"
Report = Callable[[str], None]
FileIdentity = tuple[str, int, int]
Section = TypeVar("Section", EncoderConfig, GeneratorConfig, ClickModelConfig, AlignmentConfig)
DEFAULT_GENERATOR = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def stages_of(config: TrainConfig, run: Path, report: Report) -> list[Stage]:
    """Returns the stages of a configuration, in order; simulated logs only where none are given.

    Args:
        config: the configuration.
        run: run directory.
        report: called with what a stage is doing.
    """
    config = _with_default_checkpoints(config)
    own_logs = bool(config.logs.searches)
    scenarios = [s.name for s in config.scenarios]
    kinds = config.prompt.side_information_kinds
    common = {"size": config.size, "seed": config.seed}

    def simulate(out: Path) -> str:
        from train.simulator import simulate as simulate_logs

        settings = config.simulate
        summary = simulate_logs(
            out,
            queries_path=_existing(settings.queries, "simulate.queries"),
            heldout_path=_existing(settings.heldout, "simulate.heldout"),
            num_searches=settings.num_searches,
            num_users=settings.num_users,
            num_requests=settings.num_requests,
            num_logged_queries=settings.num_queries,
            num_days=settings.num_days,
            exploration_rate=settings.exploration_rate,
            click_model=settings.click_model,
            seed=config.seed,
            overwrite=True,
            progress=lambda stage, done, total: report(f"{stage} ({done}/{total})"),
        )
        return (
            f"{summary.num_searches} simulated searches of {summary.num_queries} queries by "
            f"{summary.num_users} users, {summary.num_impressions} impressions"
        )

    def mine(out: Path) -> str:
        from train.mining.mine import mine as mine_logs

        searches: Places = config.logs.searches
        impressions: Places = config.logs.impressions
        if not own_logs:
            simulated = run / SIMULATED
            searches = str(simulated / "searches.parquet")
            impressions = str(simulated / "impressions.parquet")
        summary = mine_logs(
            config, searches=searches, impressions=impressions, out=out, report=report
        )
        dropped = ", ".join(f"{n} {reason}" for reason, n in summary.dropped.items())
        return (
            f"{summary.num_queries} queries, {summary.num_pairs} pairs, "
            f"{summary.num_contexts} contexts, {summary.num_impressions} impressions with "
            f"{summary.num_clicks} clicks; at least {summary.min_users} {summary.counted} behind "
            f"each; left out: {dropped or 'nothing'}"
        )

    def tokenizer(out: Path) -> str:
        import pyarrow.parquet as pq

        from train.models.backbone import shapes_of
        from train.models.tokenizer import arrange, train_tokenizer

        if config.size == "base":
            from train.models.checkpoint import read_tokenizer

            source = read_tokenizer(config.generator.base_checkpoint)
            layout = arrange(source.tokenizer, size=source.size, scenarios=scenarios, kinds=kinds)
            vocabulary = layout.vocabulary
        else:
            queries = pq.read_table(run / "mined/queries.parquet")
            vocabulary = train_tokenizer(
                queries["text"].to_pylist(),
                queries["num_searches"].to_pylist(),
                size=shapes_of(config.size).vocab_size,
                scenarios=scenarios,
                kinds=kinds,
            )
        vocabulary.save(out)
        return f"{vocabulary.size} ids"

    def encoder(out: Path) -> str:
        from train.models.backbone import shapes_of
        from train.retrieval.training import train_encoder

        shape = shapes_of(config.size).encoder
        recall = train_encoder(run, config.encoder, shape=shape, seed=config.seed, output=out)
        return (
            f"finds {recall.encoder:.3f} of {recall.num_pairs} held-out next queries among 20 "
            f"(adjacency {recall.adjacency:.3f}, both {recall.both:.3f})"
        )

    def sft(out: Path) -> str:
        from train.generation.generator import read_prompts, train_generator
        from train.generation.teacher import TeacherLists, read_lists
        from train.mining.anonymity import TextFilter, read_unsafe_words
        from train.models.backbone import shapes_of

        teacher = TeacherLists([], {})
        if path := config.generator.teacher_lists:
            keep = TextFilter(read_unsafe_words(config.mine.unsafe_words))
            specs = read_prompts(run).scenarios
            teacher = read_lists(Path(path), run / "mined", specs, keep)
            dropped = ", ".join(f"{n} {reason}" for reason, n in teacher.left_out.items())
            report(f"{len(teacher.sources)} lists of a teacher; left out: {dropped or 'none'}")
        model = None
        if config.size == "base":
            from train.models.checkpoint import load_rearranged

            model, _ = load_rearranged(
                config.generator.base_checkpoint, scenarios=scenarios, kinds=kinds
            )
        shape = shapes_of(config.size).generator
        metrics = train_generator(
            run,
            config.generator,
            shape=shape,
            seed=config.seed,
            output=out,
            max_edges=config.index.max_edges,
            model=model,
            teacher=teacher.sources,
            report=report,
        )
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in metrics.valid_loss.items())
        stop = " (stopped by generator.max_train_s)" if metrics.stopped_by_time else ""
        return (
            f"{metrics.num_parameters / 1e6:.1f} M parameters, {metrics.num_examples} examples "
            f"of {metrics.num_sources}{stop}, {metrics.tokens_per_s:.0f} tokens/s; held-out loss "
            f"per token: {losses or 'no held-out examples'}"
        )

    def click(out: Path) -> str:
        from train.clicks.training import train_click_model
        from train.models.backbone import shapes_of

        reports = train_click_model(
            run,
            config.click_model,
            shape=shapes_of(config.size).click_model,
            max_edges=config.index.max_edges,
            seed=config.seed,
            output=out,
            mined_with=config.mine,
            raw_impressions=(
                config.logs.impressions
                if own_logs
                else str(run / SIMULATED / "impressions.parquet")
            ),
            report=report,
        )
        if reports is None:
            return (
                "no click model, because the logs have no impressions: suggestions are served in "
                "their prior order"
            )
        whole = reports["all"]
        return (
            f"held-out AUC {whole.model.auc:.3f} (position only {whole.position_only.auc:.3f}) "
            f"over {whole.num_impressions} impressions"
        )

    def align(out: Path) -> str:
        from train.alignment.rounds import align as align_generator
        from train.generation.generator import read_prompts

        if not config.alignment.num_rounds:
            return "alignment.num_rounds is 0: the generator stays as fine-tuned"
        if not (run / "click_model").is_dir():
            return "no click model to align with: the generator stays as fine-tuned"
        metrics = align_generator(
            run,
            config.alignment,
            read_prompts(run),
            max_edges=config.index.max_edges,
            seed=config.seed,
            output=out,
            report=report,
        )
        return metrics.describe()

    def index(out: Path) -> str:
        from train.retrieval.index import build_index

        spec = build_index(run, config.index, seed=config.seed, output=out, report=report)
        return f"{spec.num_queries} queries, {spec.embedding_dim} dimensions"

    mined_settings: dict[str, object] = {
        "mine": config.mine,
        "rules": RULES_VERSION,
        "prompt": config.prompt,
        "scenarios": config.scenarios,
        "logs": [_logs(p) for p in (config.logs.searches, config.logs.impressions)],
    }
    if config.mine.unsafe_words:
        mined_settings["unsafe_words"] = _content(config.mine.unsafe_words)
    simulated = Stage(
        name="simulate",
        output=SIMULATED,
        needs=(),
        settings={
            "simulate": config.simulate,
            "seed": config.seed,
            "queries": [_content(f) for f in (config.simulate.queries, config.simulate.heldout)],
        },
        make=simulate,
    )
    return [
        *(() if own_logs else (simulated,)),
        Stage(
            name="mine",
            output="mined",
            needs=() if own_logs else ("simulate",),
            settings=mined_settings,
            make=mine,
        ),
        Stage(
            name="tokenizer",
            output="tokenizer.json",
            needs=("mine",),
            settings={"size": config.size, "base": _checkpoint(config.generator.base_checkpoint)},
            make=tokenizer,
            is_file=True,
        ),
        Stage(
            name="encoder",
            output="encoder",
            needs=("mine", "tokenizer"),
            settings={
                **common,
                "encoder": config.encoder,
                "base": _checkpoint(config.encoder.base_checkpoint),
            },
            make=encoder,
        ),
        Stage(
            name="sft",
            output="generator",
            needs=("mine", "tokenizer"),
            settings={
                **common,
                "generator": config.generator,
                "base": _checkpoint(config.generator.base_checkpoint),
                "teacher_lists": _checkpoint(config.generator.teacher_lists),
                "max_edges": config.index.max_edges,
            },
            make=sft,
        ),
        Stage(
            name="click",
            output="click_model",
            needs=("mine", "tokenizer"),
            settings={
                **common,
                "click_model": config.click_model,
                "max_edges": config.index.max_edges,
            },
            make=click,
        ),
        Stage(
            name="align",
            output="aligned",
            needs=("mine", "tokenizer", "sft", "click"),
            settings={
                "alignment": config.alignment,
                "seed": config.seed,
                "max_edges": config.index.max_edges,
            },
            make=align,
            is_shared=True,
        ),
        Stage(
            name="index",
            output="index",
            needs=("mine", "encoder"),
            settings={"index": config.index, "seed": config.seed},
            make=index,
        ),
    ]


def _with_default_checkpoints(config: TrainConfig) -> TrainConfig:
    if config.size != "base":
        return config
    replace = msgspec.structs.replace
    generator = config.generator.base_checkpoint or DEFAULT_GENERATOR
    encoder = config.encoder.base_checkpoint or DEFAULT_ENCODER
    return replace(
        config,
        generator=replace(config.generator, base_checkpoint=generator),
        encoder=replace(config.encoder, base_checkpoint=encoder),
    )


def _existing(path: str, setting: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"{setting}: there is no file {path}")
    return Path(path)


def _content(path: str) -> str | None:
    """Returns a hash of a small file, None where there is none."""
    return sha256_of(Path(path)) if Path(path).is_file() else None


def _checkpoint(path: str) -> list[FileIdentity]:
    """Returns the identity of a checkpoint's files here; of a hub id its name alone."""
    if not path:
        return []
    found = Path(path)
    return _identity(
        sorted(f for f in found.iterdir() if f.is_file()) if found.is_dir() else [found]
    )


def _logs(places: Places) -> list[FileIdentity]:
    """Returns the identity of the files at the places; of a place without files its name."""
    return _identity(f for place in places_of(places) for f in files_of(place) or [Path(place)])


def _identity(files: Iterable[Path]) -> list[FileIdentity]:
    """Returns name, size and time of change of files, which tell them apart."""
    return [
        (str(f), f.stat().st_size, f.stat().st_mtime_ns) if f.exists() else (str(f), 0, 0)
        for f in files
    ]
