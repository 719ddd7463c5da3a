"""Public log formats, turned into the log tables that training reads.

One module per format; each is an `Adapter`. To add one, write its module and name it here. Knows
nothing of how tables are written.
"""

from train.adapters import amazonqac, aol, mimics_click, ogeek, tsv
from train.adapters.adapter import Adapter

ADAPTERS: dict[str, Adapter] = {
    "tsv": tsv,
    "aol": aol,
    "amazonqac": amazonqac,
    "mimics-click": mimics_click,
    "ogeek": ogeek,
}
