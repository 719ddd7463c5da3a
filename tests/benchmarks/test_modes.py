"""Panels are written with as many texts as are asked for."""

import pytest

from benchmarks.modes import resized
from engine.formats.vocabulary import slot_token
from train.evaluation.served import Asked, ServedBundle


@pytest.mark.parametrize("num", [1, 4, 12])
def test_a_panel_has_that_many_texts_besides_its_auxiliary_one(tiny_bundle, num):
    served = ServedBundle(tiny_bundle, num_threads=1)
    try:
        assert served.bundle.manifest.generator is not None
        mode = served.bundle.manifest.generator.mode
        resized(served, mode, num)
        for name, spec in served.bundle.scenarios.items():
            (rung,) = served.bundle.rungs[name]
            first = int(spec.has_auxiliary_text)
            assert len(rung.slots) == len(rung.max_new_tokens) == num + first
            assert rung.max_new_tokens[first:] == (spec.max_new_tokens,) * num
            starts = set(rung.slots[first:])
            assert len(starts) == (1 if mode == "beam" else min(num, spec.num_slots - first))
            if first:
                assert rung.slots[0] == served.bundle.vocabulary.control_id(slot_token(0))
                assert rung.max_new_tokens[0] == spec.max_auxiliary_tokens
        (written,) = served.written("suggestion", [Asked("usb c hub")])
        assert len(written.finished) + len(written.cut) <= num
    finally:
        served.close()
