"""Runs `queryrec-export` as a module."""

from export.cli import app

app()
