"""A request's way: looked up, written, scored, ranked. Knows nothing of gRPC."""
