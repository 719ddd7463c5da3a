"""A flood tells how late its callers were, and says what is wrong with a bundle."""

import json
from pathlib import Path

import pytest

from benchmarks import flood
from engine.formats.manifest import read_manifest, write_manifest


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.txt"
    path.write_text("".join(f"lamp {i}\n" for i in range(200)))
    return path


@pytest.mark.slow
def test_a_flood_of_a_real_engine_tells_how_late_its_callers_were(
    tiny_bundle, queries, monkeypatch, capsys
):
    monkeypatch.setattr(flood, "_FLOOD_S", 2.0)
    monkeypatch.setattr(flood, "_AFTER_S", 0.5)
    assert flood.main([f"--bundle={tiny_bundle}", f"--queries={queries}", "--rates=20"]) == 0
    (figures,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["rate_rps"] == 20
    assert figures["answered_rps"] > 0
    assert figures["answered_p99_ms"] > 0
    assert 0 < figures["send_lag_p99_ms"] < float("inf")


def test_a_bundle_that_cannot_be_flooded_is_named(tiny_bundle, queries, tmp_path, capsys):
    assert flood.main([f"--bundle={tmp_path / 'nowhere'}", f"--queries={queries}"]) == 1
    assert "is this a bundle?" in capsys.readouterr().err
    manifest = read_manifest(tiny_bundle)
    manifest_without = type(manifest)(
        bundle_id="bare",
        created_at=manifest.created_at,
        prompt=manifest.prompt,
        scenarios=manifest.scenarios,
        files={},
    )
    write_manifest(tmp_path, manifest_without)
    assert flood.main([f"--bundle={tmp_path}", f"--queries={queries}"]) == 1
    assert "has no index to look up in" in capsys.readouterr().err


def test_queries_that_cannot_be_read_are_refused(tiny_bundle, capsys):
    with pytest.raises(SystemExit):
        flood.main([f"--bundle={tiny_bundle}", "--queries=nowhere.txt"])
    assert "--queries cannot be read" in capsys.readouterr().err
