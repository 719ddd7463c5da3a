"""Whether a bundle was exported from a run.

Told by the files that export copies as they are, and by the sha256 of the weights it converted.
Bundles made before those were written down say nothing of weights.
"""

from pathlib import Path

from engine.formats.manifest import Manifest, sha256_of


def doubts(manifest: Manifest, run: Path) -> list[str]:
    """Returns why figures of a bundle on a run's log may mislead; nothing if it is the run's.

    A bundle with a newer index of the run's models is the run's.

    Args:
        manifest: of the bundle.
        run: run directory.
    """
    copied = {"tokenizer.json": run / "tokenizer.json"}
    if manifest.click_model is not None and (name := manifest.click_model.statistics):
        copied[name] = run / "click_model" / name
    expected = {name: (path, manifest.files.get(name)) for name, path in copied.items()}
    for name, sha256 in manifest.provenance.items():
        if name.endswith(".safetensors"):
            expected[name] = run / name, sha256
    others = [
        name
        for name, (path, sha256) in expected.items()
        if not path.is_file() or sha256_of(path) != sha256
    ]
    if not others:
        return []
    return [
        f"bundle {manifest.bundle_id} was not exported from {run} as it stands (not its "
        f"{', '.join(others)}): it may have been trained on what it is asked for here"
    ]
