"""Where the releases are that an engine serves. Knows nothing of what is in them."""

import os
from pathlib import Path
from typing import NamedTuple


class Places(NamedTuple):
    """Bundle directories, or symbolic links to them."""

    bundle: Path
    canary: Path | None = None

    def resolved(self) -> "Places":
        """Returns where the links lead at this moment."""
        canary = self.canary and Path(os.path.realpath(self.canary))
        return Places(Path(os.path.realpath(self.bundle)), canary)
