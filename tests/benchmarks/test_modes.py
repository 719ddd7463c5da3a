"""Panels are written with as many texts as are asked for, and scored by the truth."""

from itertools import count

import numpy as np
import pytest

from benchmarks.modes import Asker, num_texts, resize
from engine.execution.models import GenerateRow
from engine.formats.vocabulary import slot_token
from train.evaluation.intervals import mean_interval
from train.evaluation.served import ServedBundle
from train.simulator.truth import Truth


@pytest.mark.parametrize("num", [1, 4, 12])
def test_a_panel_has_that_many_texts_besides_its_auxiliary_one(tiny_bundle, num):
    served = ServedBundle(tiny_bundle, num_threads=1)
    try:
        assert served.bundle.manifest.generator is not None
        mode = served.bundle.manifest.generator.mode
        assert mode in ("slots", "beam")
        resize(served, mode, num)
        for name, spec in served.bundle.scenarios.items():
            (rung,) = served.bundle.rungs[name]
            first = int(spec.has_auxiliary_text)
            taught = spec.num_slots - first
            wanted = num if mode == "beam" else min(num, taught)
            assert len(rung.slots) == len(rung.max_new_tokens) == wanted + first
            assert rung.max_new_tokens[first:] == (spec.max_new_tokens,) * wanted
            assert len(set(rung.slots[first:])) == (1 if mode == "beam" else wanted)
            if first:
                assert rung.slots[0] == served.bundle.vocabulary.control_id(slot_token(0))
                assert rung.max_new_tokens[0] == spec.max_auxiliary_tokens
        spec = next(iter(served.bundle.scenarios.values()))
        assert num_texts(served) == (num if mode == "beam" else min(num, spec.num_slots))
        row = GenerateRow([1, 2, 3], (130, 200), served.bundle.rungs[spec.name][0])
        generator = served.bundle.generator
        assert generator is not None
        (sequences,) = generator.run([row])
        assert len(sequences.ids) == num_texts(served)
    finally:
        served.close()


class EasyAndHard(Truth):
    """A truth in which the first query is clicked least and the last one most, in every panel."""

    def __init__(self) -> None:
        """Needs no world."""

    def list_click_probabilities(
        self, scenario, queries, listings, *, sessions=None, questions=None
    ):
        return [np.array([place / 10]) for place, _ in zip(count(1), queries, strict=False)]


def test_panels_of_one_query_are_resampled_together(tiny_bundle):
    served = ServedBundle(tiny_bundle, num_threads=1)
    try:
        measured = Asker(EasyAndHard(), 6, ["garden lamp"])(served, mode="slots", precision="int8")
    finally:
        served.close()
    assert len(measured.engine_U) == 6 * len(served.bundle.scenarios)
    of_queries = mean_interval(np.arange(1, 7) / 10)
    assert measured.row.engine == pytest.approx(of_queries)
    assert measured.row.alone == pytest.approx(of_queries)
