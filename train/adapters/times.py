"""Times as logs write them, in microseconds since 1970. Knows nothing of rows."""

import hashlib
import re
from datetime import UTC, datetime, timedelta

from train.adapters.adapter import BadRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DAY_US = 86_400_000_000
# 9 or 10 digits are seconds (1973 to 2286), 12 or 13 milliseconds; others could be dates.
_UNIX_TIME = re.compile(r"(\d{9,10}|\d{12,13})(\.\d+)?")
_MILLISECOND_DIGITS = 12


class TimeReader:
    """Reads the times of one file, all of which must have a time zone, or none of which.

    Without one they are taken as UTC: only order and pauses matter to training. A mixture could
    be hours out of order, so what is unlike the first time is refused. Unix times have a zone.
    """

    def __init__(self) -> None:
        """Starts before the first time of a file."""
        self._has_zone: bool | None = None

    def __call__(self, text: str) -> int:
        """Returns an ISO 8601 time, or seconds or milliseconds since 1970, as microseconds.

        Raises:
            BadRow: it is none of these, a date alone, or mixed with others.
        """
        text = text.strip()
        unix = _UNIX_TIME.fullmatch(text)
        if unix:
            is_ms = len(unix[1]) >= _MILLISECOND_DIGITS
            has_zone, time_us = True, round(float(text) * (1e3 if is_ms else 1e6))
        else:
            has_zone, time_us = _iso(text)
        if self._has_zone is None:
            self._has_zone = has_zone
        if has_zone != self._has_zone:
            raise BadRow(
                "time without a zone, where the first has one"
                if self._has_zone
                else "time with a zone, where the first has none"
            )
        return time_us


def nominal_time(text: str) -> int:
    """Returns a time on the first day of 1970, for logs that have none, always the same for a text.

    So whatever is split by time is split by text, and rows of one text stay on one side.
    """
    return int(nominal_share(text) * _DAY_US)


def nominal_share(text: str) -> float:
    """Returns a number from 0 to below 1 that looks random but is always the same for a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def _iso(text: str) -> tuple[bool, int]:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise BadRow("time cannot be read") from None
    if ":" not in text and "T" not in text:
        raise BadRow("time is a date without a time of day")
    has_zone = time.tzinfo is not None
    since = (time if has_zone else time.replace(tzinfo=UTC)) - _EPOCH
    return has_zone, since // _MICROSECOND
