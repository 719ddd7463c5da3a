"""Requests made from sessions: the right candidate is first, wrong ones are wrong in known ways."""

import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.formats.features import FEATURE_NAMES, NUM_LOG_FEATURES
from engine.formats.token_statistics import SEQUEL_LEAST, SEQUEL_MEAN, TokenStatistics
from train.clicks.batches import make_batch
from train.clicks.pretraining import WrongTexts, session_requests
from train.clicks.token_statistics import count_tokens
from train.generation.generator import read_prompts
from train.retrieval.pairs import BEFORE_CUT, EVER

TEXTS = sorted(
    ["gaming laptop", "laptop bag", "laptop stand", "coffee beans", "cheap coffee grinder"],
    key=lambda t: t.encode(),
)


@pytest.fixture(scope="module")
def trained_run(mined_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hand-made run with its contexts marked as training ones."""
    run = tmp_path_factory.mktemp("sessions")
    (run / "mined").mkdir()
    (run / "tokenizer.json").symlink_to(mined_run / "tokenizer.json")
    for path in (mined_run / "mined").iterdir():
        (run / "mined" / path.name).symlink_to(path)
    contexts = run / "mined/contexts.parquet"
    table = pq.read_table(contexts)
    contexts.unlink()
    column = table.column_names.index("split")
    pq.write_table(
        table.set_column(column, "split", pa.array(["train"] * table.num_rows)), contexts
    )
    return run


@pytest.fixture(scope="module")
def statistics(trained_run: Path) -> TokenStatistics:
    return count_tokens(trained_run, read_prompts(trained_run).renderer.vocabulary)


def test_right_candidate_is_first_and_the_log_does_not_give_it_away(
    trained_run: Path, statistics: TokenStatistics
) -> None:
    requests = session_requests(trained_run, statistics, num_requests=300, seed=0)
    assert requests is not None
    assert len(requests) == 300
    vocabulary = read_prompts(trained_run).renderer.vocabulary
    targets = {
        tuple(vocabulary.encode(c["target"]))
        for c in pq.read_table(trained_run / "mined/contexts.parquet").to_pylist()
    }
    assert requests.clicked_N.sum() == 300
    for r in range(300):
        rows = slice(requests.offsets[r], requests.offsets[r + 1])
        shown = [tuple(requests.candidates[c]) for c in requests.candidate_N[rows]]
        assert shown[0] in targets
        assert requests.clicked_N[rows].tolist() == [True] + [False] * (len(shown) - 1)
        assert len(set(shown)) == len(shown) > 1
    assert (requests.features_NF[:, :NUM_LOG_FEATURES] == 0).all()
    sequels = [FEATURE_NAMES.index(name) for name in (SEQUEL_MEAN, SEQUEL_LEAST)]
    assert (requests.features_NF[:, sequels] == 0).all()
    fluency = requests.features_NF[:, FEATURE_NAMES.index("fluency")]
    assert fluency[requests.clicked_N].mean() > fluency[~requests.clicked_N].mean()
    assert set(requests.scenario_R.tolist()) == {0, 1, 2}
    completion = requests.scenarios.index("completion")
    extends = FEATURE_NAMES.index("extends_query")
    first = requests.offsets[:-1][requests.scenario_R == completion]
    assert (requests.features_NF[first, extends] == 1).all()
    batch = make_batch(requests, [0, 1, 2])
    assert batch.clicked[:, 0].tolist() == [1, 1, 1]


def test_same_seed_gives_the_same_requests(trained_run: Path, statistics: TokenStatistics) -> None:
    first, again, other = (
        session_requests(trained_run, statistics, num_requests=30, seed=seed) for seed in (1, 1, 2)
    )
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.contexts == again.contexts != other.contexts
    assert (first.features_NF == again.features_NF).all()


def test_nothing_to_learn_from_is_none(
    trained_run: Path, mined_run: Path, statistics: TokenStatistics
) -> None:
    assert session_requests(trained_run, statistics, num_requests=0, seed=0) is None
    assert session_requests(mined_run, statistics, num_requests=10, seed=0) is None  # all held out


def test_what_was_first_searched_after_the_cut_is_no_wrong_text(
    trained_run: Path, statistics: TokenStatistics, tmp_path: Path
) -> None:
    """It is never the right one, so it would be told by that alone."""
    vocabulary = read_prompts(trained_run).renderer.vocabulary
    mined = pq.read_table(trained_run / "mined/queries.parquet")
    text = "zz a new fashion"
    for before_cut in (1_000_000, 0):
        run = shutil.copytree(trained_run, tmp_path / str(before_cut))
        new = {"text": text, EVER: 1_000_000, BEFORE_CUT: before_cut}
        row = pa.Table.from_pylist([{**mined[:1].to_pylist()[0], **new}], mined.schema)
        pq.write_table(pa.concat_tables([mined, row]), run / "mined/queries.parquet")
        requests = session_requests(run, statistics, num_requests=300, seed=0)
        assert requests is not None
        shown = {tuple(ids) for ids in requests.candidates}
        assert (tuple(vocabulary.encode(text)) in shown) == (before_cut > 0)


def test_all_queries_that_share_a_frequent_word_may_be_wrong_texts() -> None:
    """Of 6,000 some are remembered: of both ends of the alphabet, by the seed."""
    texts = [f"{number:04} pillow" for number in range(6000)]
    drawn = [
        WrongTexts(texts, [1] * 6000, seed=seed).sharing_a_word("pillow", random.Random(0), 500)
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    for part in range(6):
        share = sum(text.startswith(str(part)) for text in drawn[0]) / 500
        assert share == pytest.approx(1 / 6, abs=0.07)


def test_wrong_texts_are_of_their_kind() -> None:
    wrong, rng = WrongTexts(TEXTS, [1, 1, 1, 1, 1000]), random.Random(0)
    assert all("laptop" in t for t in wrong.sharing_a_word("my laptop", rng, 20))
    assert wrong.sharing_a_word("tent", rng, 3) == []
    assert all(t.startswith("laptop s") for t in wrong.starting_with("laptop s", rng, 5))
    assert wrong.starting_with("x", rng, 5) == []
    drawn = wrong.popular(rng, 200)
    assert drawn.count(TEXTS[-1]) > 180
    kinds = set()
    for _ in range(200):
        broken = wrong.broken("red lamp", "", rng)
        kinds.add(len(broken.split()))
        assert broken != "red lamp"
        assert wrong.broken("red lamp", "red l", rng).startswith("red l")
    assert kinds == {2, 3}


@pytest.mark.parametrize("text", ["全自动咖啡机", "コーヒーメーカー", "ที่นอนยางพารา", "茶", "茶cup"])
def test_spaces_do_not_give_away_what_is_broken_of_a_script_without_them(text: str) -> None:
    others = ["全自动洗衣机", "手机壳", "ノートパソコン", "หมอนยางพารา"]
    wrong, rng = WrongTexts(others, [1] * len(others)), random.Random(0)
    broken = [wrong.broken(text, "", rng) for _ in range(200)]
    assert not any(" " in t for t in broken)
    # Some are shuffled: nothing is lost, but it is elsewhere.
    assert any(text not in t and set(text) <= set(t) for t in broken) or len(text) == 1
    for _ in range(200):
        completed = wrong.broken(text, text[:1], rng)
        assert completed.startswith(text[:1])
        assert " " not in completed


def test_words_of_a_text_with_spaces_stay_whole() -> None:
    wrong, rng = WrongTexts(["咖啡机"], [1]), random.Random(0)
    words = {w for _ in range(200) for w in wrong.broken("手机壳 红色", "", rng).split(" ")}
    assert words == {"手机壳", "红色", "咖啡", "机"}
