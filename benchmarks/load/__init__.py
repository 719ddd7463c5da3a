"""Loads a running engine over gRPC and measures what its callers see.

Knows nothing of the engine's inside beyond the timings and omissions in its responses.

Open loop (the default): requests are due at the times of a random (Poisson) or a constant process
and are sent then, whether or not earlier ones were answered. Latency counts from the time a request
was due, so a stall of the engine, or of this program, shows in every request it delays. With
--idle: closed loop, one request at a time, for the latency of an engine with nothing else to do.

Each call carries the budget as its latency_budget and a longer deadline, so that late answers are
measured rather than cut off. Queries repeat only after the whole file has been sent (a cache would
flatter the engine), unless --prompts says otherwise; the completion scenario gets a prefix of each.

Progress goes to stderr. The last line of stdout is one JSON object:
  rate_rps            answers a second; offered_rps is what was asked for
  p50_ms .. p999_ms   latency of answers, from an HDR histogram of three digits; failed calls have
                      none
  in_budget           share of all requests that were answered within the budget
  degraded            share of answers that left something out (cached results do not count)
  efforts             answers by how they were made: full, reduced, ranked, lookup
  omissions           share of answers by what they left out and why
  errors, statuses    number of failed requests; calls by gRPC status; errors_by_reason says why
  overhead_p50_ms     server time outside the models: total - encode - generate - score, waiting
                      included; overhead_without_queue_p50_ms leaves the waiting out
  send_lag_p99_ms     how late this program sent; above 1 ms, it is the bottleneck
  stages, scenarios   the same by stage of the server and by scenario

    python -m benchmarks.load --target localhost:50051 --queries queries.txt --rate 50 --duration 30
    python -m benchmarks.load --queries queries.txt --rate 10 --ramp-to 100 --burst 200:10:1
    python -m benchmarks.load --queries log.tsv --replay --speed 2 --out run.json --html run.html
    python -m benchmarks.load compare before.json after.json
"""
