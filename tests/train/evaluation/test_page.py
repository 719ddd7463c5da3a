"""Pages stand alone, escape what they are given, and say the same for the same figures."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from train.evaluation.intervals import Interval
from train.evaluation.page import Section, Table, number, page
from train.evaluation.plots import interval_plot, line_plot

FIGURE = Interval(0.25, 0.2, 0.3)


class _Tags(HTMLParser):
    """Collects tags, attributes and texts, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _parsed(html: str) -> _Tags:
    parser = _Tags()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def test_texts_are_shown_and_never_become_markup() -> None:
    table = Table(
        header=["a<b", "x"], rows=[["<script>alert(1)</script>", FIGURE]], caption="c & d"
    )
    html = page("t<i>", "note <b>", [Section(heading="h<u>", note="n", tables=[table])])
    texts = "".join(_parsed(html).texts)
    for shown in ("a<b", "<script>alert(1)</script>", "c & d", "t<i>", "note <b>", "h<u>"):
        assert shown in texts
    assert "<script" not in html


def test_warnings_are_shown_before_all_else() -> None:
    html = page("t", "the note", [Section(heading="h", note="n")], warnings=["a<b", "c"])
    texts = [text for text in _parsed(html).texts if text.strip()]
    assert texts[texts.index("the note") - 2 :][:2] == ["Warning: a<b", "Warning: c"]


def test_interval_is_shown_with_its_bounds() -> None:
    html = page("t", "", [Section(heading="h", tables=[Table(header=["x"], rows=[[FIGURE]])])])
    assert "<td>0.250 <span>[0.200, 0.300]</span></td>" in html


def test_page_fetches_nothing() -> None:
    plots = [
        interval_plot([("ours", FIGURE), ("theirs", FIGURE)], "clicks"),
        line_plot({"ours": [(1, FIGURE), (2, FIGURE)]}, "prefix", "MRR"),
    ]
    parsed = _parsed(page("t", "", [Section(heading="h", plots=plots)]))
    links = [v for name, v in parsed.attributes if name in ("src", "href", "xlink:href")]
    assert all(link is not None and link.startswith("#") for link in links)


@pytest.mark.parametrize("name", ["ours & theirs", "<svg>"])
def test_plots_are_svg_that_names_what_it_shows(name: str) -> None:
    svg = interval_plot([(name, FIGURE)], "clicks per list")
    root = ElementTree.fromstring(svg)
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    assert name in texts
    assert "clicks per list" in texts
    assert interval_plot([(name, FIGURE)], "clicks per list") == svg


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.01234, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234"),
     (0.0, "0.000"), (-0.5, "-0.500"), (float("nan"), "undefined")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown
