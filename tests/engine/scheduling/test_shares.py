"""Equal shares, by playing a worker that always has something to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduling.shares import Shares


def served_s(shares: Shares, costs: dict[str, float], num_turns: int) -> dict[str, float]:
    """Returns the time that each flow got, all of them always having items."""
    got = dict.fromkeys(costs, 0.0)
    for _ in range(num_turns):
        items = [(flow, cost_s, flow) for flow, cost_s in costs.items()]
        flow = next(shares.in_turns(items))
        shares.charge(flow, costs[flow])
        got[flow] += costs[flow]
    return got


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=5))
def test_flows_that_always_want_more_get_the_same_time_within_one_item(costs):
    by_flow = {str(i): cost_s for i, cost_s in enumerate(costs)}
    got = served_s(Shares(), by_flow, 200)
    total_s = [got[flow] for flow in by_flow]
    assert max(total_s) - min(total_s) <= max(costs) + 1e-9


def test_time_in_which_a_flow_wanted_nothing_is_neither_made_up_for_nor_held_against_others():
    shares = Shares()
    served_s(shares, {"early": 1.0}, 100)
    got = served_s(shares, {"early": 1.0, "late": 1.0}, 20)
    assert got == {"early": 10, "late": 10}


def test_a_flow_that_comes_in_goes_before_what_another_has_piled_up():
    shares = Shares()
    served_s(shares, {"flood": 1.0}, 3)
    items = [("flood", 1.0, i) for i in range(3)] + [("calm", 1.0, "calm")]
    assert list(shares.in_turns(items)) == ["calm", 0, 1, 2]


def test_the_lead_is_what_another_flow_has_had_more():
    shares = Shares()
    shares.charge("a", 3.0)
    assert shares.lead_s("b", "a") == pytest.approx(3.0)
    assert shares.lead_s("a", "b") == pytest.approx(-3.0)


def test_items_of_one_flow_stay_in_their_order():
    items = [("a", 0.5, i) for i in range(5)]
    assert list(Shares().in_turns(items)) == [0, 1, 2, 3, 4]
