"""Serve, let simulated users click, learn from the feedback, swap, again: through a real engine.

A round asks an engine the questions of fresh simulated sessions over gRPC, clicks as the simulated
truth says, and reports impressions and clicks with their tokens. The engine's own feedback files
become a table of impressions, which joins the log; mining runs on both, click model and generator
learn on from where they were, the bundle is exported, the link that the engine serves is moved, and
SIGHUP makes it swap. Searches, and so tokenizer, encoder and index, stay. Nothing but clicks passes
from the truth to training.

Before the first round and after each one, the same questions are asked again, of other sessions and
of queries that no log holds, by an engine beside the first that swaps no places, and their lists
are scored by the truth.

The last line of stdout is one JSON object, which OUT/rounds.json holds after every round:
is_simulated, rounds: [{number, bundle_id, num_requests, num_clicks, sessions: {true_ctr, gain},
unseen: {...}}]; true_ctr is the true P(click) of a place of a list, gain that over the first
bundle's, each [mean, low, high] with users and unseen queries resampled. `queryrec-train report
--closed-loop` shows it.

    python -m benchmarks.closed_loop --run runs/demo --out runs/loop --rounds 3 --requests 20000
"""
