"""Scripts by example: what a search log of several countries holds."""

import pytest

from train.evaluation.scripts import script_of


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("usb-c cable 2m", "ascii"),
        ("", "ascii"),
        ("50 € gift card", "ascii"),  # no letter beyond ASCII
        ("zapatos de niño", "latin"),
        ("größe 42", "latin"),
        ("ワイヤレス イヤホン", "cjk"),
        ("usb ケーブル", "cjk"),
        ("靴 レディース", "cjk"),
        ("耳机", "cjk"),
        ("무선 이어폰", "cjk"),
        ("наушники", "other"),
        ("café наушники", "other"),
        ("سماعات", "other"),
    ],
)
def test_a_text_is_of_the_script_of_its_letters(text: str, script: str):
    assert script_of(text) == script
