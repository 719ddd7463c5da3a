"""One worker a contender: how it is converted, loaded and asked. Run by `benchmarks.peers.contest`.

A worker runs in its peer's environment, so it imports only that peer and `protocol`.
"""
