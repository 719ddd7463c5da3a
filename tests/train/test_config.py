from pathlib import Path

import msgspec
import pytest

from train.config import TrainConfig, read_config, to_toml
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


def test_mistakes_of_a_section_do_not_hide_one_another(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "[generator]\nnum_epoch = 2\nmode = 'beams'\nbatch_size = 0\nseed = 1\ncold_share = 'x'\n"
        # Shorter prompts than the default's are right where the queries in them are shorter.
        "[prompt]\nmax_tokens = 20\nmax_query_tokens = 10\nmax_item_tokens = 0\n"
        "[[scenarios]]\nname = 'a b'\ndescription = ''\n"
        "[[scenarios]]\nname = 'b'\ndescription = ''\nnum_slots = 0\nslots = 1\n",
    )
    with pytest.raises(ValueError, match="generator") as raised:
        read_config(path)
    message = str(raised.value)
    parts = (
        "generator: unknown field 'num_epoch'",
        "generator: mode is 'beams', must be one of slots, list, both, beam",
        "generator: batch_size is 0",
        "generator: unknown field 'seed'",
        "cold_share",
        "prompt: max_item_tokens is 0",
        "scenarios[0]: scenario name 'a b'",
        "scenarios[1]: num_slots is 0",
        "scenarios[1]: unknown field 'slots'",
    )
    for part in parts:
        assert part in message
    assert message.count(";") == len(parts) - 1, "each is told once, and nothing else"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("size = 'huge'", "size is 'huge', must be one of tiny, demo, small, base"),
        ("[simulate]\nclick_model = 1", "click_model is 1, must be one of pbm, cascade"),
        ("[mine]\nengine = 'sparc'", "engine is 'sparc', must be one of duckdb, spark"),
        ("[alignment]\nobjective = ''", "objective is '', must be one of pl, lipo, dpo, sdpo"),
        ("[alignment]\npessimism = 0.1", "0.1, must be 0 (off) or at least 0.5 and below 1"),
        ("[alignment]\npessimism = 1", "1.0, must be 0 (off) or at least 0.5 and below 1"),
        ("[alignment]\npessimism = -0.5", "-0.5, must be 0 (off) or at least 0.5"),
        ("[click_model]\nmax_requests = -1", "max_requests is -1"),
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
        ("[encoder]\nmax_tokens = 16", "max_tokens"),
        ("size = 'base'\n[encoder]\nbatch_sise = 2", "batch_sise"),
        ("seed = -1", "seed is -1"),
        ("size = [", "not TOML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path, content: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"config\.toml") as raised:
        read_config(written(tmp_path, content))
    assert part in str(raised.value)


@pytest.mark.parametrize("level", [0, 0.5, 0.99])
def test_pessimism_is_off_or_a_level_from_a_half_on(tmp_path: Path, level: float) -> None:
    path = written(tmp_path, f"[alignment]\npessimism = {level}")
    assert read_config(path).alignment.pessimism == level


def test_numbers_are_finite(tmp_path: Path) -> None:
    fields = {
        f"[{section}]\n{name}"
        for section, values in msgspec.to_builtins(TrainConfig()).items()
        if isinstance(values, dict)
        for name, value in values.items()
        if isinstance(value, float)
    }
    # A whole number is a default of some.
    fields |= {f"[{section}]\nmax_train_s" for section in ("encoder", "generator", "click_model")}
    assert len(fields) > 20
    for field in sorted(fields):
        for value in ("inf", "nan"):
            with pytest.raises(ValueError, match=f"{field.split()[-1]} is {value}"):
                read_config(written(tmp_path, f"{field} = {value}"))


def test_base_is_fine_tuned_at_the_rates_of_its_example(tmp_path: Path) -> None:
    """Those for random weights would unlearn what the checkpoints know."""
    example, plain = read_config(EXAMPLES / "base.toml"), read_config(None, size="base")
    for section, name in (
        ("encoder", "batch_size"),
        ("encoder", "learning_rate"),
        ("generator", "batch_size"),
        ("generator", "learning_rate"),
        ("generator", "matrix_learning_rate"),
    ):
        wanted = getattr(getattr(example, section), name)
        assert getattr(getattr(plain, section), name) == wanted, (section, name)
    assert plain.alignment.learning_rate == 1e-5
    path = written(tmp_path, 'size = "base"\n[generator]\nlearning_rate = 1e-5\n')
    config = read_config(path)
    assert config.generator.learning_rate == 1e-5
    assert config.generator.matrix_learning_rate == 0
    assert read_config(path, size="small").generator.matrix_learning_rate == 0.02
    assert read_config(written(tmp_path, to_toml(config))) == config


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
    (tmp_path / "my.tsv").touch()
    for file in (tmp_path / "my.tsv", old / "searches.parquet"):
        file.touch()
        with pytest.raises(ValueError, match=r"is a file; give the directory of the tables, or"):
            read_config(path, logs=[file])
    (old / "searches.parquet").unlink()
    with pytest.raises(ValueError, match=r"no directory holds searches\.parquet"):
        read_config(path, logs=[old])


def test_sections_are_immutable() -> None:
    with pytest.raises(AttributeError):
        MineConfig().min_users = 1  # pyright: ignore[reportAttributeAccessIssue]
