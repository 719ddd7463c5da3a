"""Small logs, written by hand, and what is mined of them."""

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq

from train.config import TrainConfig, read_config
from train.mining.mine import MineSummary, mine

START = datetime(2024, 1, 1)
Write = Callable[[list[dict], list[dict]], Any]


def configured(**changes: Any) -> TrainConfig:
    config = read_config(None, size="tiny")
    fields = {"min_users": 2, "min_pairs": 1, "valid_share": 0.0, "num_threads": 1, **changes}
    return msgspec.structs.replace(config, mine=msgspec.structs.replace(config.mine, **fields))


def search(user: str, minute: float, query: str, session: str | None = None) -> dict:
    time = START + timedelta(minutes=minute)
    return {"session_id": session or user, "time": time, "query": query, "user_key": user}


def shown(user: str, text: str, **changes: Any) -> dict:
    row = {
        "request_id": f"r-{user}",
        "time": START,
        "session_id": user,
        "scenario": "suggestion",
        "query": "tea",
        "side_information": [],
        "position": 1,
        "text": text,
        "source": "log",
        "shown": True,
        "clicked": True,
        "user_key": user,
        "propensity": 1.0,
        "auxiliary_text": None,
    }
    return {**row, **changes}


def mined(
    write: Write, tmp_path: Path, searches: list[dict], impressions: list[dict], **changes: Any
) -> tuple[Path, MineSummary]:
    tables = write(searches, impressions)
    out = tmp_path / "run/mined"
    shutil.rmtree(out, ignore_errors=True)
    summary = mine(
        configured(**changes),
        searches=str(tables.searches),
        impressions=str(tables.impressions) if impressions else "",
        out=out,
        report=lambda _: None,
    )
    return out, summary


def rows(out: Path, name: str) -> list[dict]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()
