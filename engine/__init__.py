"""Serving: from a request to ranked suggestions inside a latency budget.

Also holds what training and serving must agree on: text normalisation, prompt rendering,
click-model features, and the bundle format.
"""
