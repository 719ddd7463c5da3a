"""The generator: examples, training, and how lists are drawn from it."""
