"""Learns from an engine's feedback beside the older log. Knows nothing of engines or users."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.feedback.impressions import to_impressions
from engine.feedback.segments import segments
from train.alignment.rounds import align
from train.clicks.training import train_click_model
from train.config import TrainConfig
from train.generation.generator import read_prompts
from train.mining.mine import mine
from train.models.backbone import shapes_of

_KEPT = ("tokenizer.json", "encoder", "index", "config.toml")


def write_feedback(feedback: Path, searches: Path, out: Path, *, seed: int) -> None:
    """Writes an engine's feedback as a table of impressions, within the time of the log.

    The simulated month is over when the engine answers; mining would keep all that is later than
    its cut for validation. So requests are spread evenly over the log's time.

    Args:
        feedback: directory of the engine's feedback log, to which nothing is written meanwhile.
        searches: the log's table of searches.
        out: parquet file to write.
        seed: of the times.
    """
    raw = out.with_suffix(".raw.parquet")
    to_impressions(segments(feedback, include_open=True), raw)
    table = pq.read_table(raw)
    time_s = pq.read_table(searches, columns=["time"])["time"].cast(pa.int64()).to_numpy() / 1e6
    codes = table["request_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    share = np.random.default_rng(seed).random(int(codes.max()) + 1)[codes]
    spread_s = time_s.min() + share * (time_s.max() - time_s.min())
    times = pa.array((spread_s * 1e6).astype(np.int64)).cast(table.schema.field("time").type)
    place = table.schema.get_field_index("time")
    pq.write_table(table.set_column(place, table.schema.field("time"), times), out)
    raw.unlink()


def learn(
    before: Path,
    out: Path,
    config: TrainConfig,
    *,
    searches: Path,
    impressions: Sequence[Path],
    round_number: int,
) -> None:
    """Makes a run directory with a click model and a generator that know the newest feedback.

    Both start from those of the last round.

    Args:
        before: run directory of the last round.
        out: the new one.
        config: of the run; `alignment.num_rounds` rounds are made, at least one.
        searches: the log's table of searches.
        impressions: all tables of impressions, the log's first.
        round_number: from 1, for other draws in each round.
    """
    keep(before, out)
    aligned = before / "aligned"
    has_aligned = (aligned / "config.json").is_file()
    shutil.copytree(aligned if has_aligned else before / "generator", out / "generator")
    shutil.copy(before / "generator/metrics.json", out / "generator/metrics.json")
    places = [str(path) for path in impressions]
    mine(config, searches=str(searches), impressions=places, out=out / "mined")
    (out / "click_model").mkdir()
    train_click_model(
        out,
        config.click_model,
        shape=shapes_of(config.size).click_model,
        max_edges=config.index.max_edges,
        seed=config.seed,
        output=out / "click_model",
        raw_impressions=places,
        mined_with=config.mine,
        start=before,
    )
    (out / "aligned").mkdir()
    settings = msgspec.structs.replace(
        config.alignment, num_rounds=max(1, config.alignment.num_rounds)
    )
    align(
        out,
        settings,
        read_prompts(out),
        max_edges=config.index.max_edges,
        seed=config.seed + round_number,
        output=out / "aligned",
    )
    shutil.rmtree(out / "aligned/checkpoints")


def keep(before: Path, out: Path) -> None:
    """Makes a run directory with what a round does not learn: tokenizers, encoder and index."""
    out.mkdir(parents=True)
    for source in (before / name for name in _KEPT):
        if source.is_dir():
            shutil.copytree(source, out / source.name)
        elif source.is_file():  # not all encoders have a tokenizer of their own
            shutil.copy(source, out / source.name)


def export(run: Path, bundle: Path) -> None:
    """Exports a run."""
    command = ["-m", "export", "bundle", "--run", str(run), "--out", str(bundle)]
    subprocess.run([sys.executable, *command, "--parity-requests", "6"], check=True)
