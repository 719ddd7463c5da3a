"""From checkpoints to a bundle: verified, quantised ONNX graphs with a manifest."""
