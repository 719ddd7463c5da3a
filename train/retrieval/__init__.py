"""The query encoder and the co-occurrence index."""
