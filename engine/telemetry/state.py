"""What an engine is at a moment, for Prometheus: asked at each scrape, not counted."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

PREFIX = "queryrec_"
"""Of the names of all metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What an engine is at a moment."""

    bundle_ids: Mapping[str, str] = field(default_factory=dict[str, str])  # by side; none: loading
    num_waiting: int = 0  # rows that wait for a model
    call_wait_s: float = 0.0  # how long a call waits until it is looked at
    num_swaps: int = 0  # releases that took another's place
    num_refusals: int = 0  # releases that could not


class StateCollector(Collector):
    """Exports it at each scrape."""

    def __init__(self, state: Callable[[], State]) -> None:
        """Asks `state` each time, on another thread."""
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics of this moment."""
        state = self._state()
        for name, text, value in (
            ("ready", "1 once a bundle serves.", min(1, len(state.bundle_ids))),
            ("rows_waiting", "Rows that wait for a model.", state.num_waiting),
            (
                "call_wait_seconds",
                "How long the last call of the engine to itself waited until it was looked at.",
                state.call_wait_s,
            ),
        ):
            yield GaugeMetricFamily(PREFIX + name, text, value)
        for name, text, value in (
            ("bundle_swaps", "Releases that took another's place.", state.num_swaps),
            ("bundle_refusals", "Releases that could not be used.", state.num_refusals),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value)
        bundles = InfoMetricFamily(PREFIX + "bundle", "The bundles that serve.", labels=("side",))
        for side, bundle_id in state.bundle_ids.items():
            bundles.add_metric((side,), {"bundle_id": bundle_id})
        yield bundles
