"""Results of Ibis expressions, small enough for Python's own types.

Knows nothing of where tables come from or what is asked of them.
"""

from typing import Any


def rows_of(expression: Any) -> list[dict[str, Any]]:
    """Returns the rows of a small result."""
    return expression.to_pyarrow().to_pylist()


def number_of(expression: Any) -> int:
    """Returns a count or sum, 0 for that of no rows."""
    return int(expression.to_pyarrow().as_py() or 0)
