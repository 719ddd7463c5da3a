#!/usr/bin/env bash
# Serves the bundle that comes with the project and asks it; needs no training and no torch.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=examples/bundle
started=$SECONDS

echo "== Asking a running engine for 12 held-out queries (never in a log, never in the index)"
bash examples/with_engine.sh "$bundle" .venv/bin/python examples/ask_heldout.py
cat <<EOF

Done in $((SECONDS - started)) s. The models learnt from simulated logs on real queries: $bundle/README.md.
How to go on:
  .venv/bin/queryrec-engine serve --bundle $bundle         # serve it
  .venv/bin/queryrec-engine ask "wireless earbuds"                 # ask it, from another shell
  make bench-load                                                  # load-test it
  make demo-train                                                  # train such a bundle from logs
EOF
