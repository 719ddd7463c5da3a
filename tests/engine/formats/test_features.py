import numpy as np
import pytest

from engine.formats.features import FEATURE_NAMES, candidate_features
from engine.formats.manifest import ScenarioSpec

SCENARIO = ScenarioSpec(name="s", description="", position_ctr=[1.0])


def feature(name: str, query: str, text: str) -> float:
    rows = candidate_features(SCENARIO, query, [text], [0.0], [0.0], None)
    assert rows.dtype == np.float32
    return rows[0, FEATURE_NAMES.index(name)]


@pytest.mark.parametrize(
    ("query", "text", "shared", "new"),
    [
        ("usb cable", "usb cable black", 2, 1),
        ("carregador sem fio", "carregador de carro", 1, 2),
        ("無線耳機", "無線耳機推薦", 3, 2),  # pairs of neighbours
        ("無線 earbuds", "earbuds", 1, 0),
    ],
)
def test_words_shared_with_the_query(query, text, shared, new):
    num_asked = {"usb cable": 2, "carregador sem fio": 3, "無線耳機": 3, "無線 earbuds": 2}[query]
    assert feature("query_coverage", query, text) == pytest.approx(shared / num_asked)
    assert feature("word_overlap", query, text) == pytest.approx(shared / (num_asked + new))
    assert feature("num_new_words", query, text) == pytest.approx(new / 8)
    assert feature("num_words", query, text) == pytest.approx((shared + new) / 8)
