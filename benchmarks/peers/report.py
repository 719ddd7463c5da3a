"""What came of a contest: medians, ratios and shares, as a table and as JSON.

Knows nothing of how times were taken. For a model the JSON has, with N of 1, 4 and 16 prompts:

    best_peer              the peer that is the fastest for most numbers of prompts, by best_peer_N
    best_peer_N, ratio_N   the fastest beam search of a peer for N prompts, and its median time by
                           that of our beam graph in int8: above 1 we are faster
    ratio_rounds_N         the same as the median of the ratios of single rounds
    ratio_fp32_N           as ratio_N, with our fp32 graph
    best_peer_slots_N, ratio_slots_N   the fastest peer that samples, or begins each sequence with a
                           token of its own, and its median time by that of our slots graph in int8
    ratio_openvino_N       the same ratio for OpenVINO; ratio_P_N for every other peer P, and
                           ratio_P_beams_N, as ratio_N, for its beam search
    floor_share_N          time of the bare int8 products by our time in int8; floor_share is
                           their mean. floor_graph_share_N: all products in one graph
    medians_ms             by contender and number of prompts
    settings               of the fastest variant, by contender and number of prompts
    equal_tokens           share of greedy tokens equal to those of transformers in fp32: by
                           contender in fp32 (the weights are the same if it is 1), and by
                           "contender variant" for those measured
    others_share_N         share of the machine that other processes took during the rounds
    failures               why contenders, or variants of them, are missing
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from benchmarks.peers.catalogue import SEARCH

Round = Mapping[tuple[str, str], float]  # milliseconds by contender and variant

OURS, OURS_FP32, OURS_SLOTS = "ours", "ours fp32", "ours slots"  # the first two with beams
FLOOR, FLOOR_GRAPH = "floor int8", "floor int8 in one graph"


@dataclass(slots=True)
class Outcome:
    """All that is known of one model."""

    model: str
    rounds: dict[int, Sequence[Round]] = field(default_factory=dict)  # by number of prompts
    equal_tokens: dict[str, float] = field(default_factory=dict)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)  # by "contender variant"
    failures: dict[str, str] = field(default_factory=dict)
    others: dict[int, float | None] = field(default_factory=dict)  # see machine.Neighbours

    def medians(self, num_prompts: int) -> dict[str, tuple[float, str]]:
        """Returns the median milliseconds of each contender's fastest variant, and the variant."""
        times: dict[tuple[str, str], list[float]] = {}
        for result in self.rounds[num_prompts]:
            for key, ms in result.items():
                times.setdefault(key, []).append(ms)
        fastest: dict[str, tuple[float, str]] = {}
        for (name, variant), values in times.items():
            median = statistics.median(values)
            if name not in fastest or median < fastest[name][0]:
                fastest[name] = (median, variant)
        return fastest


def is_peer(name: str) -> bool:
    return not name.startswith(("ours", "floor"))


def _ours_like(name: str) -> str:
    """Returns which of our graphs in int8 does what a contender does: beams, but for sampling."""
    samples = is_peer(name) and not name.endswith(SEARCH)
    return OURS_SLOTS if samples or name.startswith(OURS_SLOTS) else OURS


def _fastest(medians: Mapping[str, tuple[float, str]], ours: str) -> str | None:
    peers = (name for name in medians if is_peer(name) and _ours_like(name) == ours)
    return min(peers, key=lambda p: medians[p][0], default=None)


def figures(outcome: Outcome) -> dict[str, object]:
    """Returns the figures of a model; see the module's docstring. A missing one is None."""
    result: dict[str, object] = {"best_peer": None, "floor_share": None}
    firsts, shares = Counter[str](), list[float]()
    medians_ms: dict[str, dict[str, float]] = {}
    settings: dict[str, dict[str, str]] = {}
    for n in outcome.rounds:
        medians = outcome.medians(n)
        for name, (ms, variant) in medians.items():
            medians_ms.setdefault(name, {})[str(n)] = round(ms, 3)
            settings.setdefault(name, {})[str(n)] = variant
        best, best_slots = _fastest(medians, OURS), _fastest(medians, OURS_SLOTS)
        result[f"best_peer_{n}"] = best
        result[f"best_peer_slots_{n}"] = best_slots
        result[f"ratio_slots_{n}"] = _ratio(medians, best_slots, OURS_SLOTS)
        result[f"ratio_{n}"] = _ratio(medians, best, OURS)
        result[f"ratio_fp32_{n}"] = _ratio(medians, best, OURS_FP32)
        result[f"ratio_rounds_{n}"] = _ratio_of_rounds(outcome.rounds[n], medians, best)
        for name in filter(is_peer, medians):
            key = name.replace("-", "_").replace(" ", "_")
            result[f"ratio_{key}_{n}"] = _ratio(medians, name, _ours_like(name))
        result.setdefault(f"ratio_openvino_{n}", None)
        share = result[f"floor_share_{n}"] = _ratio(medians, FLOOR, OURS)
        result[f"floor_graph_share_{n}"] = _ratio(medians, FLOOR_GRAPH, OURS)
        result[f"others_share_{n}"] = outcome.others.get(n)
        if share is not None:
            shares.append(share)
        if best is not None:
            firsts[best] += 1
    if firsts:
        result["best_peer"] = firsts.most_common(1)[0][0]
    if shares:
        result["floor_share"] = round(statistics.mean(shares), 3)
    return {
        **result,
        "medians_ms": medians_ms,
        "settings": settings,
        "versions": outcome.settings,
        "equal_tokens": outcome.equal_tokens,
        "failures": outcome.failures,
    }


def table(outcome: Outcome) -> Table:
    """Returns a table of contenders: milliseconds, and the ratio to ours of the kind, in int8."""
    counts = list(outcome.rounds)
    medians = {n: outcome.medians(n) for n in counts}
    result = Table(title=f"{outcome.model}: milliseconds, and times ours of the kind in int8")
    result.add_column("contender")
    for n in counts:
        result.add_column(f"{n} prompt{'s' if n > 1 else ''}", justify="right")
    result.add_column("settings")
    result.add_column("equal: fp32 | these", justify="right")
    names = dict.fromkeys(name for n in counts for name in medians[n])
    for name in sorted(names, key=lambda m: (not m.startswith("ours"), m.startswith("floor"), m)):
        cells, variants = list[str](), list[str]()
        for n in counts:
            if name not in medians[n]:
                cells.append("-")
                continue
            ms, chosen = medians[n][name]
            ratio = _ratio(medians[n], name, _ours_like(name))
            cells.append(f"{ms:.1f}" + (f" ({ratio:.2f})" if ratio is not None else ""))
            variants.append(chosen)
        used = list(dict.fromkeys(variants))
        keys = [name, *(f"{name} {v}" for v in used)]
        equal = [f"{outcome.equal_tokens[k]:.0%}" for k in keys if k in outcome.equal_tokens]
        result.add_row(name, *cells, " | ".join(used), " | ".join(equal))
    for name, reason in outcome.failures.items():
        result.add_row(name, *["-"] * len(counts), reason, "", style="red")
    return result


def _ratio(medians: Mapping[str, tuple[float, str]], name: str | None, by: str) -> float | None:
    if name is None or name not in medians or by not in medians:
        return None
    return round(medians[name][0] / medians[by][0], 3)


def _ratio_of_rounds(
    rounds: Sequence[Round], medians: Mapping[str, tuple[float, str]], name: str | None
) -> float | None:
    if name is None or OURS not in medians:
        return None
    theirs, ours = (name, medians[name][1]), (OURS, medians[OURS][1])
    ratios = [r[theirs] / r[ours] for r in rounds if theirs in r and ours in r]
    return round(statistics.median(ratios), 3) if ratios else None
