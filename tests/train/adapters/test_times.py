from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.adapters.adapter import BadRow
from train.adapters.times import TimeReader, nominal_share, nominal_time

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1))


@given(MOMENTS, ZONES)
def test_a_time_with_a_zone_is_the_moment_it_names(moment: datetime, zone: timezone) -> None:
    time = moment.replace(tzinfo=zone)
    read = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=TimeReader()(time.isoformat()))
    assert read == time


@given(MOMENTS)
def test_all_ways_to_write_a_time_agree(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)
    seconds = int((moment - datetime(1970, 1, 1)).total_seconds())
    written = (
        f"{moment} ", moment.isoformat(), moment.strftime("%Y%m%dT%H%M%S"),
        f"{moment.isoformat()}Z", f"{seconds}", f"{seconds}.0", f"{seconds}000",
    )  # fmt: skip
    assert {TimeReader()(text) for text in written} == {seconds * 1_000_000}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("soon", "cannot be read"),
        ("2026-02-30 10:00", "cannot be read"),
        ("2026-03-01 24:01", "cannot be read"),
        ("01/03/2026 10:00", "cannot be read"),
        ("1772354400000000", "cannot be read"),  # microseconds
        ("17723544", "cannot be read"),
        ("-1772354400", "cannot be read"),
        ("nan", "cannot be read"),
        ("20260301", "without a time of day"),
        ("2026-03-01", "without a time of day"),
    ],
)
def test_what_is_no_time_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        TimeReader()(text)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("2026-03-01 10:00", "2026-03-01T10:00+01:00"),
        ("2026-03-01T10:00Z", "2026-03-01 10:00"),
        ("1772354400", "2026-03-01 10:00"),
    ],
)
def test_times_with_and_without_zones_do_not_mix(first: str, other: str) -> None:
    read = TimeReader()
    read(first)
    with pytest.raises(BadRow, match="zone, where the first"):
        read(other)
    read(first)
    different_zones = TimeReader()
    assert different_zones("2026-03-01T10:00+01:00") == different_zones("2026-03-01T09:00Z")
    assert different_zones("1772355600") == different_zones("2026-03-01T09:00Z")


def test_nominal_times_depend_on_the_text_alone_and_spread_over_a_day() -> None:
    times = [nominal_time(f"query {i}") for i in range(1000)]
    assert times == [nominal_time(f"query {i}") for i in range(1000)]
    day_us = 86_400_000_000
    per_quarter = [sum(q <= 4 * t / day_us < q + 1 for t in times) for q in range(4)]
    assert sum(per_quarter) == 1000
    assert min(per_quarter) > 200
    assert 0 <= nominal_share("") < 1
