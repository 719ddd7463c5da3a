"""A release that could not be used, and when it is tried again. Knows nothing of what was wrong."""

from pathlib import Path
from typing import NamedTuple

from engine.formats.manifest import Manifest

_RETRY_S, _MAX_RETRY_S = 60.0, 3600.0  # between tries of what was refused; doubles with each


class Refusal(NamedTuple):
    """What was refused last, in one place."""

    directory: Path
    manifest: Manifest | None  # None if it could not be read
    why: str
    is_again: bool  # the same as the time before
    delay_s: float
    until_s: float  # not tried again before, unless asked

    @classmethod
    def after(
        cls,
        before: "Refusal | None",
        directory: Path,
        manifest: Manifest | None,
        why: str,
        *,
        now_s: float,
        is_asked: bool,
    ) -> "Refusal":
        """Returns a refusal that follows on another.

        Args:
            before: The last one in that place.
            directory: Where the release is.
            manifest: Its manifest, None if it could not be read.
            why: What was wrong.
            now_s: The time, on the clock on which it is held against the release.
            is_asked: Whether somebody asked for the try: the row of delays then starts anew.
        """
        is_again = before is not None and before[:3] == (directory, manifest, why)
        delay_s = _RETRY_S
        if before and is_again and not is_asked:
            delay_s = min(2 * before.delay_s, _MAX_RETRY_S)
        return cls(directory, manifest, why, is_again, delay_s, now_s + delay_s)

    def holds(self, directory: Path, manifest: Manifest | None, now_s: float) -> bool:
        """Returns whether it still keeps a release from being tried."""
        return (self.directory, self.manifest) == (directory, manifest) and now_s < self.until_s
