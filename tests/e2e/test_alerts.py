"""Alerts fire when they should, by Prometheus' own judgement. Without promtool they are skipped."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus"
PROMTOOL = shutil.which("promtool") or str(ROOT / ".venv-promtool/promtool")


@pytest.mark.skipif(not Path(PROMTOOL).is_file(), reason="needs promtool: make promtool")
def test_alerts_fire_when_they_should():
    run = subprocess.run(
        [PROMTOOL, "test", "rules", ALERTS / "alerts_test.yml"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_is_tried():
    (group,) = yaml.safe_load((ALERTS / "alerts.yml").read_text())["groups"]
    tried = (ALERTS / "alerts_test.yml").read_text()
    assert not [r["alert"] for r in group["rules"] if f'"{r["alert"]}"' not in tried]
