import gzip
from pathlib import Path

import pytest

from train.mining.anonymity import TextFilter

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "text",
    [
        *("john.smith@gmail.com", "john.smith@gmail", "john.smith@gmail com", "j@x.de"),
        *("john.smith @gmail.com", "john.smith@ gmail.com", "write john @ mail.gmail.com now"),
        *(
            "john.smith\uff20gmail\uff0ecom",
            "john.smith@gmail\u3002com",
            "jo\u00adhn@\u00adgmail.de",
        ),
    ],
)
def test_email_addresses_are_refused_however_they_are_typed(text: str) -> None:
    assert TextFilter()(text).reason == "email"


@pytest.mark.parametrize("text", ["@ease frog", "lunch @ 12.30", "dinner @ eight", "tea @ home"])
def test_other_uses_of_an_at_sign_are_kept(text: str) -> None:
    assert TextFilter()(text).text == text


@pytest.mark.parametrize("sign", [*",:;+|*#=~'", " | ", ", ", "\u200d", "\u00ad"])
@pytest.mark.parametrize("number", ["4111 1111 1111 1111", "212 555 0143"])
def test_numbers_are_refused_whatever_parts_them(number: str, sign: str) -> None:
    assert TextFilter()(number.replace(" ", sign)).reason == "long_number"


@pytest.mark.parametrize("text", ["9123 4567", "2345-6789", "call 9123 4567", "my tel: 9123-4567"])
def test_eight_digits_alone_or_said_to_be_a_phone_are_refused(text: str) -> None:
    assert TextFilter()(text).reason == "long_number"


@pytest.mark.parametrize(
    "text",
    [
        *("3 4 5 6 7 8", "iphone 12 13 14", "1920x1080", "mp3 320 128", "windows 10 19041.1"),
        *("10,000,000 yen", "100,000,000 yen", "$1,000,000,000", "100'000'000 chf"),
        *("rtx 4090 4080", "hp photosmart 2600 2700 series", "omb 3064-0001", "1024*768"),
        *("2024-2025", "1999 2000", "2024-0131", "1743-1826", "thomas jefferson 1743-1826"),
        *("2018, 2019, 2020 camry", "2003 2004 2005 corvette", "2023/24, 2024/25"),
    ],
)
def test_ordinary_numbers_are_kept(text: str) -> None:
    assert TextFilter()(text).text == text


def test_addresses_of_the_internet_are_refused_and_those_of_any_home_kept() -> None:
    assert TextFilter()("who is 8.8.8.8").reason == "ip_address"
    for text in ("192.168.1.1 login", "127.0.0.1:80", "10.0.0.1", "300.8.8.8", "1.2.3.4.5"):
        assert TextFilter()(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        *("iphone 15 pro max 256gb", "1080p 4k", "2023 2024 cars", "monitor 1920 x 1080 - 2024"),
        *(
            "2019 - 2020 - 2021",
            "season 2023/24 - 2024/25",
            "2023 \u2013 2024 cars",
            "10 - 20 - 30",
        ),
    ],
)
def test_years_and_sizes_are_kept(text: str) -> None:
    assert TextFilter()(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "212\u2011555\u20110143",
            "212\u2013555\u20130143",
            "212_555_0143",
            "212\u00b7555\u00b70143",
        ),
        *("212 - 555 - 0143", "212 - 555 - 2043", "212 \u2212 555 \u2212 0143", "212 / 555 / 0143"),
        *("+49 (0) 30 / 123 45 67", "4111\u20131111\u20131111\u20131111"),
        *("4111 - 1111 - 1111 - 1111", "123-45-6789", "123\u201145\u20116789", "123 - 45 - 6789"),
    ],
)
def test_numbers_of_people_are_refused_however_they_are_parted(text: str) -> None:
    assert TextFilter()(text).reason == "long_number"
    assert TextFilter()(f"call {text} now").reason == "long_number"


def test_hardly_any_real_query_is_refused() -> None:
    with gzip.open(ROOT / "examples/data/queries.tsv.gz", "rt") as lines:
        queries = [line.split("\t")[0] for line in lines][1:]
    verdicts = map(TextFilter(), queries)
    refused = [q for q, verdict in zip(queries, verdicts, strict=True) if verdict.text is None]
    assert len(refused) < 1e-4 * len(queries), refused
