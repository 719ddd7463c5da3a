"""From checkpoints to a bundle: verified, quantised ONNX graphs with a manifest."""

import engine  # noqa: F401 - before ONNX Runtime, which it keeps from reporting home
