"""What is being served: one release, or two between which sessions are split. Swaps them live.

A release is loaded and warmed aside while requests go on; then one reference is swapped, and the
old release ends with its last request. A release that cannot be used leaves the old one serving.

Knows nothing of gRPC, nor of who asks for a swap.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.answering.pipeline import Pipeline
from engine.formats.manifest import BundleError, Manifest, read_manifest
from engine.scheduling.deadline import Clock, MonotonicClock
from engine.serving.in_flight import InFlight
from engine.serving.places import Places
from engine.serving.refusals import Refusal

_log = logging.getLogger(__name__)

Load = Callable[[str, Path, Sequence[str], Sequence[Pipeline]], Awaitable[Pipeline]]


class Release:
    """A pipeline, and how many requests it is answering."""

    def __init__(self, side: str, pipeline: Pipeline, phrases: Sequence[str]) -> None:
        """Wraps a pipeline that is warm, for a side, "bundle" or "canary"; it blocks phrases."""
        self.side = side
        self.pipeline = pipeline
        self.phrases = phrases
        self._requests = InFlight()

    @property
    def manifest(self) -> Manifest:
        """The manifest of its bundle."""
        return self.pipeline.bundle.manifest

    @contextmanager
    def answering(self) -> Generator[Pipeline]:
        """Keeps the release alive for one request."""
        with self._requests:
            yield self.pipeline

    async def end(self) -> None:
        """Waits for the last request, then lets go of models and index."""
        await self._requests.idle()
        await self.pipeline.close()


class Releases:
    """The releases in use. To be used from one event loop.

    Attributes:
        num_swaps: Releases that took another's place.
        num_refusals: Releases that could not; each counts once, however often it is looked at. One
            that another process died over may be added.
    """

    def __init__(
        self,
        load: Load,
        *,
        clock: Clock | None = None,
        phrases: Callable[[], Sequence[str]] = tuple,
        canary_share: float = 0.0,
        report: Callable[[str], None] = lambda _: None,
        randomness: random.Random | None = None,
    ) -> None:
        """Loads nothing yet.

        Args:
            load: Returns the warm pipeline of a side and directory, which blocks the phrases given,
                given those that are in use.
            clock: Time.
            phrases: Returns what the blocklist holds now. Raises ValueError if it cannot be read.
            canary_share: Share of sessions that the canary answers.
            report: Called with a line for the operator.
            randomness: Of requests without a session.
        """
        self.num_swaps = 0
        self.num_refusals = 0
        self._load = load
        self._clock = clock or MonotonicClock()
        self._phrases = phrases
        self._canary_share = canary_share
        self._report = report
        self._random = randomness or random.Random()
        self._sides: dict[str, Release] = {}  # "bundle", and "canary" if there is one
        self._refused: dict[str, Refusal] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def main(self) -> Release | None:
        """The release that says which scenarios there are; None while it is loading."""
        return self._sides.get("bundle")

    @property
    def in_use(self) -> dict[str, Release]:
        """The releases by side, "bundle" and "canary". May be asked from any thread."""
        return dict(self._sides)

    def pick(self, session_id: str, scenario: str) -> Release:
        """Returns the release that answers a request.

        A session stays on one side, also when the share grows. A request without one is sent
        at random; one for a scenario that not both sides have goes to the main release.
        """
        main, canary = self._sides["bundle"], self._sides.get("canary")
        if canary is None or not all(
            scenario in release.pipeline.bundle.scenarios for release in (main, canary)
        ):
            return main
        at = _fraction(session_id) if session_id else self._random.random()
        return canary if at < self._canary_share else main

    async def load(self, places: Places) -> None:
        """Loads the first releases.

        Raises:
            BundleError: a bundle cannot be used.
            ValueError: see `load_pipeline`.
        """
        for side, directory in places.sides():
            self._sides[side] = await self._loaded(side, directory)

    async def refresh(self, places: Places, *, is_asked: bool) -> bool:
        """Looks at all sides as `refresh_side` does. Returns whether what is there is served."""
        is_current = True
        for side, directory in places.sides():
            is_current &= await self.refresh_side(side, directory, is_asked=is_asked)
        return is_current

    async def refresh_side(self, side: str, directory: Path, *, is_asked: bool) -> bool:
        """Looks whether another release is there and swaps it in.

        Never raises for what is wrong with a release: that is logged, once for each release.

        Args:
            side: One of those that `load` had.
            directory: Where its release is now; or the same, where something else may be now.
            is_asked: Whether somebody waits for the outcome: what was refused before is then
                tried again at once, and so is what is served if the blocklist has changed; that
                nothing has changed is reported.

        Returns:
            Whether what is there is what is served.
        """
        old, before, started_s = self._sides[side], self._refused.get(side), self._clock.now_s()
        manifest = None
        try:
            manifest = await asyncio.to_thread(read_manifest, directory)
            if manifest == old.manifest:
                if not is_asked:
                    return True
                if await asyncio.to_thread(self._phrases) == old.phrases:
                    self._report(f"{side} {manifest.bundle_id} is served already")
                    return True
            elif before and not is_asked and before.holds(directory, manifest, started_s):
                return False
            if side == "bundle":
                _check_scenarios(directory, manifest, old.manifest)
            new = await self._loaded(side, directory)
        except Exception as error:  # whatever is wrong with it, the old one must go on serving
            now_s, why = self._clock.now_s(), str(error)
            refusal = Refusal.after(
                before, directory, manifest, why, now_s=now_s, is_asked=is_asked
            )
            self._refused[side] = refusal
            self.num_refusals += not refusal.is_again
            if is_asked or not refusal.is_again:
                trace = None if isinstance(error, ValueError) else error
                message = "%s refused, %s goes on serving: %s"
                _log.error(message, side, old.manifest.bundle_id, error, exc_info=trace)
            return False
        self._sides[side] = new
        self._refused.pop(side, None)
        self.num_swaps += 1
        _log.info("bundle swapped", extra={"side": side, "bundle_id": manifest.bundle_id})
        ending = asyncio.ensure_future(old.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        self._report(
            f"{side} {manifest.bundle_id} takes over from {old.manifest.bundle_id} after "
            f"{self._clock.now_s() - started_s:.2f} s"
        )
        return True

    async def close(self) -> None:
        """Ends all releases, each after its last request."""
        releases = list(self._sides.values())
        self._sides.clear()
        await asyncio.gather(*self._ending, *(release.end() for release in releases))

    async def _loaded(self, side: str, directory: Path) -> Release:
        phrases = await asyncio.to_thread(self._phrases)
        pipeline = await self._load(side, directory, phrases, self._pipelines())
        return Release(side, pipeline, phrases)

    def _pipelines(self) -> list[Pipeline]:
        return [release.pipeline for release in self._sides.values()]


def _check_scenarios(directory: Path, new: Manifest, old: Manifest) -> None:
    """Raises BundleError if callers would miss a scenario."""
    lost = {s.name for s in old.scenarios} - {s.name for s in new.scenarios}
    if lost:
        raise BundleError(
            f"{directory}: lacks {', '.join(sorted(lost))}, which callers are using; export it "
            "with these scenarios, or start the engine again with this bundle"
        )


def _fraction(session_id: str) -> float:
    """Returns a number in [0, 1) that depends on the session alone."""
    # Its own hash: a split that callers make by the same id is independent of this one.
    digest = hashlib.blake2b(session_id.encode(), digest_size=6, person=b"canary").digest()
    return int.from_bytes(digest) / 2**48
