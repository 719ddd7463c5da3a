"""Loads a running engine over gRPC and measures what its callers see.

Knows nothing of the engine's inside beyond the timings and omissions in its responses.

Open loop (the default): requests are due at the times of a random (Poisson) or a constant process
and are sent then, whether or not earlier ones were answered. Latency counts from the time a request
was due, so a stall of the engine, or of this program, shows in every request it delays. With
--idle: closed loop, one request at a time, for the latency of an engine with nothing else to do.

Each call carries the budget as its latency_budget and a longer deadline, so that late answers are
measured rather than cut off. Queries repeat only after the whole file has been sent (a cache would
flatter the engine), unless --prompts says otherwise; the completion scenario gets a prefix of each.
The same --seed sends the same requests: a second run within the cache's time is answered from it.

Progress goes to stderr. Ctrl-C ends a run early, with exit status 130. The last line of stdout is
one JSON object:
  rate_rps            answers a second; offered_rps is what was due, asked_rps the --rate
  p50_ms .. p999_ms   latency of answers, by nearest rank; failed calls have none
  cached              share of answers that used results of an earlier request
  in_budget           share of all requests that were answered within the budget
  degraded            share of answers that left out something that the bundle has (cached results
                      do not count)
  efforts             answers by how they were made: full, reduced, ranked, lookup
  omissions           share of answers by what they left out and why
  errors, statuses    number of failed requests; calls by gRPC status; errors_by_reason says why
  overhead_p50_ms     server time outside the models: total - encode - generate - score, waiting
                      included; overhead_without_queue_p50_ms leaves the waiting out
  send_lag_p99_ms     how late this program sent; above 1 ms, it is the bottleneck
  stages, scenarios   the same by stage of the server and by scenario
  cut_short           whether Ctrl-C ended the run: what was under way then is not counted

`compare` puts two runs of --out side by side: ratios of latencies and differences of shares, with
95 % intervals. `warnings` of its last line say what keeps them from telling of a change: another
load, another share of cached answers, too few answers.

    python -m benchmarks.load --target localhost:50051 --queries queries.txt --rate 50 --duration 30
    python -m benchmarks.load --queries queries.txt --rate 10 --ramp-to 100 --burst 200:10:1
    python -m benchmarks.load --queries log.tsv --replay --speed 2 --out run.json --html run.html
    python -m benchmarks.load compare before.json after.json
"""
