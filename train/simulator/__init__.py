"""A simulated search service: real queries in, simulated logs out, with a known, frozen truth.

Everything about behaviour here is simulated: popularity, users, sessions, panels, clicks. Only the
query texts are real. `simulate` writes the log tables that training reads; `load` gives back the
truth, which scores any string. Training never imports this package; evaluation does.
"""

from train.simulator.simulation import SimulationSummary, simulate
from train.simulator.truth import SCENARIOS, Truth
from train.simulator.world import load, read_record

__all__ = ["SCENARIOS", "SimulationSummary", "Truth", "load", "read_record", "simulate"]
