#!/usr/bin/env bash
# The whole chain on simulated logs: simulate, mine, train, export, serve, ask.
# Finished stages are kept in runs/demo, so a second run goes straight to the questions.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
run=runs/demo
started=$SECONDS

echo "== Simulating logs on real queries and training ($run; about five minutes the first time)"
"$python" -m train run --config examples/configs/demo.toml --run "$run"
for part in tokenizer.json encoder generator aligned click_model index; do
  # Trained again since the bundle was made: make a new one.
  if [ "$run/$part" -nt "$run/bundle" ]; then rm -rf "$run/bundle"; fi
done
if [ ! -f "$run/bundle/manifest.json" ]; then
  echo "== Exporting to ONNX, compared with torch, int8"
  "$python" -m export bundle --run "$run" --out "$run/bundle" --parity-requests 12
fi
echo "== Asking a running engine for 12 held-out queries (never in a log, never in the index)"
bash examples/with_engine.sh "$run/bundle" "$python" examples/ask_heldout.py
cat <<EOF

Done in $((SECONDS - started)) s. Logs, clicks and popularity above are simulated; the queries are real.
How to go on:
  .venv/bin/queryrec-engine serve --bundle $run/bundle          # serve it
  .venv/bin/queryrec-engine ask "wireless earbuds"              # ask it, from another shell
  make bench-load BUNDLE=$run/bundle                         # load-test it
  .venv/bin/queryrec-train run --config YOUR.toml --run runs/x  # train on your own logs
EOF
