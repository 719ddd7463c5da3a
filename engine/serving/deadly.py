"""Bundles that a worker process died over, and when one is tried again.

It may have been the bundle, or have come at the wrong moment: the system was short of memory, say.
Knows nothing of processes.
"""

import asyncio
from pathlib import Path

from engine.formats.manifest import BundleError, Manifest, read_manifest
from engine.scheduling.deadline import Clock, MonotonicClock
from engine.serving.refusals import Refusal


class DeadlyBundles:
    """Says of each whether it is held back. To be used from one event loop."""

    def __init__(self, clock: Clock | None = None) -> None:
        """Knows of none yet."""
        self._clock = clock or MonotonicClock()
        self._refusals: dict[Path, Refusal] = {}

    async def holds(self, directory: Path) -> bool:
        """Returns whether what is there is held back still."""
        refusal = self._refusals.get(directory)
        if refusal is None:
            return False
        return refusal.holds(directory, await _manifest_of(directory), self._clock.now_s())

    async def add(self, directory: Path, *, is_asked: bool) -> Refusal:
        """Notes that a worker died over what is there.

        Args:
            directory: Of the bundle.
            is_asked: Whether somebody had asked for it to be tried.
        """
        manifest = await _manifest_of(directory)
        refusal = self._refusals[directory] = Refusal.after(
            self._refusals.get(directory),
            *(directory, manifest, "a worker died over it"),
            now_s=self._clock.now_s(),
            is_asked=is_asked,
        )
        return refusal

    def release(self, directory: Path) -> None:
        """Holds what is there back no longer, as somebody asks for it; the row goes on."""
        if refusal := self._refusals.get(directory):
            self._refusals[directory] = refusal._replace(until_s=self._clock.now_s())

    def forget(self, directory: Path) -> None:
        """Notes that a worker serves what is there."""
        self._refusals.pop(directory, None)


async def _manifest_of(directory: Path) -> Manifest | None:
    try:
        return await asyncio.to_thread(read_manifest, directory)
    except BundleError:
        return None
