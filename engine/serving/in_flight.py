"""How much of something is under way. Knows nothing of what it is."""

import asyncio


class InFlight:
    """Counts what has begun and not ended. To be used from one event loop, as a context manager.

    Attributes:
        num: How many there are.
    """

    def __init__(self) -> None:
        """Starts with none."""
        self.num = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        """Counts one more."""
        self.num += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        """Counts one less."""
        self.num -= 1
        if self.num == 0:
            self._idle.set()

    async def idle(self) -> None:
        """Waits until there is none."""
        await self._idle.wait()
