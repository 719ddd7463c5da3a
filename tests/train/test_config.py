from pathlib import Path

import pytest

from train.config import read_config, to_toml
from train.settings import MineConfig

EXAMPLES = Path(__file__).parents[2] / "examples/configs"


def written(directory: Path, content: str) -> Path:
    path = directory / "config.toml"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_example_configurations_are_valid_and_name_their_size(path: Path) -> None:
    assert read_config(path).size == path.stem


def test_effective_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'seed = 7\n[logs]\nsearches = ["a.parquet", "b/*.parquet"]\nimpressions = "i"\n'
        '[mine]\nunsafe_words = "a 🫖 \\"b\\" \\u007f\\\\c"\nmin_users = 3\n'
        '[[scenarios]]\nname = "next"\ndescription = "what is next"\n',
    )
    config = read_config(path, size="tiny")
    assert config.size == "tiny"
    assert config.mine.min_users == 3
    assert [s.name for s in config.scenarios] == ["next"]
    assert read_config(written(tmp_path, to_toml(config))) == config


def test_all_errors_are_reported_together(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "sise = 1\n[mine]\nmin_users = 0\n[generator]\nmood = 1\n[encoder]\nbatch_size = 'x'\n",
    )
    with pytest.raises(ValueError, match="sise") as raised:
        read_config(path)
    message = str(raised.value)
    assert all(part in message for part in ("min_users is 0", "mood", "encoder", "batch_size"))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("size = 'huge'", "huge"),
        ("[[scenarios]]\nname = 'a b'\ndescription = ''", "'a b'"),
        ("[[scenarios]]\nname = 'Next'\ndescription = ''", "'Next'"),
        (f"[[scenarios]]\nname = '{'a' * 65}'\ndescription = ''", "must be 1 to 64"),
        ("[[scenarios]]\nname = 'a'\ndescription = ''\nnum_slots = 99", "num_slots is 99"),
        ("scenarios = []", "scenarios is empty"),
        ("[logs]\nimpressions = 'x.parquet'", "logs.searches"),
        ("[logs]\nsearches = ['x', 'x']", "must name different places"),
        ("[logs]\nsearches = ['x', '']", "must name different places"),
        ("[generator]\nbase_checkpoint = 'gpt'", "only size base"),
        ("[generator]\nlearning_rate = 0", "learning_rate is 0"),
        ("[prompt]\nmax_tokens = 10", "max_tokens is 10"),
        ("seed = -1", "seed is -1"),
        ("size = [", "not TOML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path, content: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"config\.toml") as raised:
        read_config(written(tmp_path, content))
    assert part in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.toml: cannot be read"):
        read_config(tmp_path / "absent.toml")


def test_logs_are_found_in_directories_and_override_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[logs]\nsearches = 'other.parquet'\n")
    for name in ("old/searches", "old/impressions", "new/impressions"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.parquet").touch()
    old, new = tmp_path / "old", tmp_path / "new"
    config = read_config(path, logs=[old, new])
    assert config.logs.searches == str(old / "searches.parquet")
    assert config.logs.impressions == [str(d / "impressions.parquet") for d in (old, new)]
    (new / "impressions.parquet").rename(new / "searches.parquet")
    assert read_config(path, logs=[new]).logs.impressions == ""
    assert read_config(path).logs.searches == "other.parquet"
    with pytest.raises(ValueError, match=r"absent: holds neither searches\.parquet nor"):
        read_config(path, logs=[new, tmp_path / "absent"])
    (old / "searches.parquet").unlink()
    with pytest.raises(ValueError, match=r"no directory holds searches\.parquet"):
        read_config(path, logs=[old])


def test_sections_are_immutable() -> None:
    with pytest.raises(AttributeError):
        MineConfig().min_users = 1  # pyright: ignore[reportAttributeAccessIssue]
