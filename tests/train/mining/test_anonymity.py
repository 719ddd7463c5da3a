import pyarrow as pa
import pytest

from engine.formats.text import normalise_prefix
from train.mining.anonymity import TextFilter


@pytest.mark.parametrize(
    "text", ["免费色情电影", "b\u00adad", "a bad-idea", "so Nastyness", "you 🖕", "bad_thing"]
)
def test_unsafe_words_are_found_as_when_serving(text: str) -> None:
    assert TextFilter(["色情", "bad", "nasty*", "🖕"])(text).reason == "unsafe_words"


def test_typed_prefixes_are_those_of_serving() -> None:
    typed = ["ΟΔΟΣ", "Ipad ", "ipad", "a@b.cd ", "  "]
    batch = pa.RecordBatch.from_arrays([pa.array(typed)], names=["raw"])
    (cleaned,) = TextFilter().clean([batch])
    expected = [normalise_prefix(raw) for raw in typed[:3]]
    assert cleaned["prefix"].to_pylist() == [*expected, None, None]
