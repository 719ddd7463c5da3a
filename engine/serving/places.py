"""Where the releases are that an engine serves. Knows nothing of what is in them."""

import os
from pathlib import Path
from typing import NamedTuple


class Places(NamedTuple):
    """Bundle directories, or symbolic links to them."""

    bundle: Path
    canary: Path | None = None

    def sides(self) -> list[tuple[str, Path]]:
        """Returns (side, directory): "bundle", then "canary" if there is one."""
        sides = [("bundle", self.bundle)]
        return sides if self.canary is None else [*sides, ("canary", self.canary)]

    def with_side(self, side: str, directory: Path) -> "Places":
        """Returns these places, but another directory on one side."""
        return self._replace(**{side: directory})

    def resolved(self) -> "Places":
        """Returns where the links lead at this moment."""
        canary = self.canary and Path(os.path.realpath(self.canary))
        return Places(Path(os.path.realpath(self.bundle)), canary)
