"""What is taken from a numbered list that a language model wrote."""

from train.report.prompting import items_of


def test_items_are_distinct_normalised_and_not_the_query() -> None:
    written = "1. Garden  Chairs\n2) garden table\nand more\n3. garden tables.\n4. garden table\n5."
    found = items_of(written, "garden chairs", completes_prefix=False)
    assert found == ["garden table", "garden tables."]


def test_completions_start_with_what_was_typed() -> None:
    written = "1. garden chairs\n2. a garden\n3. garden ch\n4. garden chest"
    found = items_of(written, "garden ch", completes_prefix=True)
    assert found == ["garden chairs", "garden chest"]


def test_nothing_written_is_an_empty_list() -> None:
    assert items_of("1.", "x", completes_prefix=False) == []
