"""Serving: from a request to ranked suggestions inside a latency budget.

Also holds what training and serving must agree on: text normalisation, prompt rendering,
click-model features, and the bundle format.
"""

import os

# Wheels of ONNX Runtime report what they run to its maker, unless told not to before their import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
