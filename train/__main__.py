"""Runs `queryrec-train` as `python -m train`."""

from train.cli import app

app()
