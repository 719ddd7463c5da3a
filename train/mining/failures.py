"""What an engine could not do with the logs, told without a word of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from train.settings import Places, places_of

_ENGINES = ("duckdb", "_duckdb", "pyspark", "py4j", "pyarrow")
# What engines say, and what it means to who brought the tables.
_FAILURES = {
    "Invalid string encoding": "a text is not UTF-8",
    "codec can't decode": "a text is not UTF-8",
    "Out of Memory": "memory is short; see mine.memory_limit_mb",
    "OutOfMemory": "memory is short; see mine.memory_limit_mb",
    "don't know what type": "a file is damaged",
}


def first_line(error: Exception) -> str:
    """Returns the first line of what an engine says; of Spark, that of the innermost cause."""
    text, java = str(error), getattr(error, "java_exception", None)
    while java is not None:
        text, java = str(java.toString()), java.getCause()
    return text.strip().partition("\n")[0]


@contextmanager
def told_without_values(searches: Places, impressions: Places) -> Iterator[None]:
    """Turns what an engine says of data that it cannot read into a ValueError without the data.

    Engines quote the value that they could not read, and it may be anyone's own text.
    """
    try:
        yield
    except Exception as error:
        # Spark passes texts that are not UTF-8 on to Python.
        is_theirs = type(error).__module__.split(".")[0] in _ENGINES
        if not is_theirs and not isinstance(error, UnicodeDecodeError):
            raise
        why = next((why for sign, why in _FAILURES.items() if sign in str(error)), "")
        tables = {"searches": places_of(searches), "impressions": places_of(impressions)}
        named = " or ".join(f"{t} ({', '.join(p)})" for t, p in tables.items() if p)
        raise ValueError(
            f"table {named} cannot be mined: {why or 'the engine failed'} ({type(error).__name__})"
        ) from None
