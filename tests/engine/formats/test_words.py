import pytest

from engine.formats.words import parts_of, words_of


def test_words_are_parted_by_spaces_and_else_pairs_of_neighbours() -> None:
    assert words_of("cheap  laptop bag") == ["cheap", "laptop", "bag"]
    assert words_of("cafés à paris") == ["cafés", "à", "paris"]
    assert words_of("дешёвый ноутбук") == ["дешёвый", "ноутбук"]
    assert words_of("무선 이어폰") == ["무선", "이어폰"]
    assert words_of("咖啡机") == ["咖啡", "啡机"]
    assert words_of("茶") == ["茶"]
    assert words_of("iphone15手机壳 红色") == ["iphone15", "手机", "机壳", "红色"]
    assert words_of("") == []


@pytest.mark.parametrize(
    ("text", "parts", "space"),
    [
        ("cheap laptop bag", ["cheap", "laptop", "bag"], " "),
        (" bag", ["", "bag"], " "),
        ("дешёвый", ["дешёвый"], " "),
        ("手机壳 红色", ["手机壳", "红色"], " "),
        ("全自动咖啡机", ["全自", "动咖", "啡机"], ""),
        ("iphone15手机壳", ["iphone15", "手机", "壳"], ""),
        ("ที่นอน", ["ที่น", "อน"], ""),
        ("", [""], " "),
    ],
)
def test_parts_rejoin_to_the_text(text: str, parts: list[str], space: str) -> None:
    assert parts_of(text) == (parts, space)
    assert space.join(parts) == text
