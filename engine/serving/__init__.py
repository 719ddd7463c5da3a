"""Processes, releases and the gRPC face."""
