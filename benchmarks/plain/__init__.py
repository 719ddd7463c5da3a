"""What a good engineer would put together in a week, to compare the engine with.

Answers `queryrec.v1` over grpc.aio with the same models, index and ranking as a bundle of the same
run, on torch and transformers: requests are collected for 10 ms, then a batch goes through
encoder, faiss HNSW (or the exact table), `transformers` decoding with a key-value cache, and the
click model over all candidates, on one thread of torch's. What is obvious is tuned: inference
mode, prompts read once for all of their slots, left padding, finished sequences leave the batch,
warm-up, and at the start the precision (float32, or bfloat16 where the CPU has it) and the number
of threads that are fastest here. Beams are those of training's own search, which keeps a prompt's
keys and values once.

It has no planner, no deadlines, no degraded answers, no cache and no tokens for feedback. Where
slots agree on a rare prefix it completes with fewer texts; the engine generates again.

    python -m benchmarks.plain serve --run runs/demo --port 50052
    python -m benchmarks.plain check --run runs/demo --queries examples/data/heldout.txt.gz
"""
