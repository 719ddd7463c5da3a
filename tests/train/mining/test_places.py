import os
from pathlib import Path

import pytest

from train.mining.parquet import difference
from train.mining.places import files_of, files_of_several, missing


def put(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names_of(place: Path | str, directory: Path) -> list[str]:
    return [str(file.relative_to(directory)) for file in files_of(str(place))]


def test_a_directory_is_its_parquet_files_alone(tmp_path: Path) -> None:
    put(tmp_path, "b.parquet", "a.parquet", "notes.txt", "below/c.parquet", "table.parquet/part-0")
    put(tmp_path, "._a.parquet", "_metadata.parquet", ".a.parquet.crc")
    assert names_of(tmp_path, tmp_path) == ["a.parquet", "b.parquet"]


def test_a_file_is_a_place_whatever_its_name(tmp_path: Path) -> None:
    put(tmp_path, "_s*[1]", "_s2")
    assert names_of(tmp_path / "_s*[1]", tmp_path) == ["_s*[1]"]


def test_two_stars_are_any_number_of_directories_and_links_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "logs", "a.parquet", "2026/01/b.parquet", ".cache/c.parquet", "._a.parquet")
    put(tmp_path / "logs", "_temporary/0/d.parquet", "2026/_SUCCESS")
    put(tmp_path / "volume", "e.parquet")
    (tmp_path / "logs/link").symlink_to(tmp_path / "volume")
    (tmp_path / "logs/again.parquet").symlink_to(tmp_path / "logs/a.parquet")
    found = ["2026/01/b.parquet", "a.parquet", "link/e.parquet"]
    assert names_of(tmp_path / "logs/**/*.parquet", tmp_path / "logs") == found
    assert names_of(tmp_path / "logs/**", tmp_path / "logs") == found


def test_hidden_directories_above_a_glob_do_not_matter(tmp_path: Path) -> None:
    put(tmp_path, ".data/_logs/a.parquet")
    assert names_of(tmp_path / ".data/_logs/*.parquet", tmp_path) == [".data/_logs/a.parquet"]


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").symlink_to(tmp_path / "absent")
    for place in (tmp_path, tmp_path / "*.parquet", tmp_path / "**"):
        assert names_of(place, tmp_path) == ["a.parquet"]


def test_a_link_to_itself_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").symlink_to("a.parquet")
    put(tmp_path, "b.parquet")
    for place in (tmp_path, tmp_path / "*.parquet"):
        assert names_of(place, tmp_path) == ["a.parquet", "b.parquet"]
    assert names_of(tmp_path / "a.parquet", tmp_path) == ["a.parquet"]
    assert files_of_several([str(tmp_path), str(tmp_path / "a*")]) == [tmp_path / "a.parquet"]
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as parquet"):
        difference([tmp_path / "a.parquet"], ["query"])


def test_a_relative_glob_is_looked_for_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "logs/a.parquet", "logs/below/b.parquet")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert list(map(str, files_of("../logs/**/*.parquet"))) == [
        "../logs/a.parquet",
        "../logs/below/b.parquet",
    ]


def test_what_is_missing_is_told_apart(tmp_path: Path) -> None:
    for place, told in {
        tmp_path: f"there is no *.parquet file in {tmp_path}",
        tmp_path / "*.parquet": f"no file fits {tmp_path}/*.parquet",
        tmp_path / "absent": f"there is no {tmp_path}/absent",
    }.items():
        assert files_of(str(place)) == []
        assert missing(str(place)) == told


def test_files_of_several_places_are_found_below_links_too(tmp_path: Path) -> None:
    put(tmp_path / "logs", "2026/a.parquet", "b.parquet")
    os.symlink(tmp_path / "logs/2026", tmp_path / "link")
    places = [str(tmp_path / "logs/**/*.parquet"), str(tmp_path / "link")]
    assert files_of_several(places) == [tmp_path / "logs/2026/a.parquet"]
    assert files_of_several([str(tmp_path / "logs"), str(tmp_path / "link")]) == []
