"""Panels are written with as many texts as are asked for."""

import pytest

from benchmarks.modes import num_texts, resize
from engine.execution.models import GenerateRow
from engine.formats.vocabulary import slot_token
from train.evaluation.served import ServedBundle


@pytest.mark.parametrize("num", [1, 4, 12])
def test_a_panel_has_that_many_texts_besides_its_auxiliary_one(tiny_bundle, num):
    served = ServedBundle(tiny_bundle, num_threads=1)
    try:
        assert served.bundle.manifest.generator is not None
        mode = served.bundle.manifest.generator.mode
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
        (sequences,) = served.bundle.generator.run([row])
        assert len(sequences.ids) == num_texts(served)
    finally:
        served.close()
