#!/usr/bin/env bash
# Runs a command while an engine serves a bundle: with_engine.sh BUNDLE COMMAND...
# The command sees the engine's address in $TARGET. The engine is stopped afterwards.
set -euo pipefail
bundle=$1
shift
python=${PYTHON:-.venv/bin/python}
log=$(mktemp)
feedback=$(mktemp -d)
QUERYREC_FEEDBACK_DIRECTORY=${QUERYREC_FEEDBACK_DIRECTORY:-$feedback} \
  "$python" -m engine serve --bundle "$bundle" --port 0 >"$log" 2>&1 &
engine=$!
trap 'kill "$engine" 2>/dev/null || true; wait "$engine" 2>/dev/null || true; rm -rf "$log" "$feedback"' EXIT
for _ in $(seq 300); do
  grep -q 'queryrec-engine: serving ' "$log" && break
  kill -0 "$engine" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.2
done
TARGET=$(sed -n 's/.*listening on //p' "$log" | tail -n 1)
[ -n "$TARGET" ] || { cat "$log" >&2; exit 1; }
export TARGET
"$@"
