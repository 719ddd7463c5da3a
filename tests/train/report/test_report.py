"""The report of a run by one command: which figures are there, and whether they fit together."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest

from export.sample import write_sample_bundle
from tests.train.alignment.test_preferences import drawn, worth
from tests.train.conftest import SimulatedRun, command, topic_queries
from train.alignment.history import AlignmentMetrics, Round
from train.alignment.preferences import ranked_texts
from train.evaluation.intervals import Interval
from train.evaluation.served import ServedBundle
from train.evaluation.suite import read_queries
from train.evaluation.traffic import read_traffic
from train.report import report
from train.report.ablation import AblationRow
from train.report.closed_loop import ListWorth, LoopRound, read_rounds, write_rounds
from train.report.page import report_page
from train.report.policies import PolicyLists, Question, best_drawn
from train.simulator.clicks import ClickModel
from train.simulator.world import WorldRecord

ROOT = Path(__file__).parents[3]
HELDOUT = ROOT / "examples/data/heldout.txt.gz"
WORTH = ListWorth(true_ctr=Interval(0.02, 0.01, 0.03), gain=Interval(1.25, 1.125, 1.5))
ROUNDS = [
    LoopRound(
        number=number,
        bundle_id=f"bundle {number}",
        num_requests=100 * number,
        num_clicks=7 * number,
        sessions=WORTH,
        unseen=WORTH,
    )
    for number in range(3)
]


def test_rounds_of_a_closed_loop_are_read_as_written(tmp_path: Path) -> None:
    write_rounds(ROUNDS, tmp_path / "rounds.json")
    assert read_rounds(tmp_path / "rounds.json") == ROUNDS


@pytest.mark.parametrize("content", [None, b"", b'{"is_simulated": true}', b'{"rounds": [{}]}'])
def test_what_is_no_closed_loop_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json: no rounds .* writes rounds\.json"):
        read_rounds(path)


def test_a_run_that_is_not_aligned_is_told_which_setting_does_it(tmp_path: Path) -> None:
    (tmp_path / "simulated").mkdir()
    (tmp_path / "simulated/world.json").touch()
    (tmp_path / "aligned").mkdir()
    with pytest.raises(ValueError, match=r"no aligned generator; set alignment\.num_rounds"):
        report.make_report(
            tmp_path,
            tmp_path / "bundle",
            HELDOUT,
            second_world=None,
            kept=tmp_path / "kept.json",
            placebo_prompts=0,
            num_queries=1,
            seed=0,
        )


def write_world(run: Path, click_model: ClickModel = "pbm") -> Path:
    """Writes what tells a run's truth from another one's; returns its directory."""
    record = WorldRecord(
        is_simulated=True,
        seed=0,
        click_model=click_model,
        num_logged_queries=1,
        formula_version=1,
        fingerprint=click_model,
        definition_sha256="",
        queries_sha256="",
        heldout_sha256="",
        probe=[],
    )
    (run / "simulated").mkdir(parents=True)
    (run / "simulated/world.json").write_text(json.dumps(dataclasses.asdict(record)))
    return run / "simulated"


def refused(
    run: Path, message: str, *, second_world: Path | None = None, prompted: str = ""
) -> None:
    """Checks that a report is refused before anything is done."""
    with pytest.raises(ValueError, match=message):
        report.make_report(
            run,
            run / "no bundle",
            HELDOUT,
            second_world=second_world,
            prompted=prompted,
            kept=run / "kept.json",
            placebo_prompts=0,
            num_queries=1,
            seed=0,
            report=pytest.fail,
        )


def test_a_second_world_with_the_truth_of_the_run_is_refused(tmp_path: Path) -> None:
    write_world(tmp_path / "run")
    same, other = write_world(tmp_path / "copy"), write_world(tmp_path / "other", "cascade")
    refused(tmp_path / "run", "has the run's own seed and click model", second_world=same)
    refused(tmp_path / "run", "no aligned generator", second_world=other)


def test_a_checkpoint_that_cannot_be_loaded_is_told_before_the_work(tmp_path: Path) -> None:
    write_world(tmp_path)
    (tmp_path / "aligned").mkdir()
    (tmp_path / "aligned/metrics.json").touch()
    nowhere = str(tmp_path / "nowhere")
    refused(tmp_path, "checkpoint .*nowhere cannot be loaded", prompted=nowhere)


class RandomTruth:
    """Texts are clicked as often as their letters draw, wherever they stand; notes all of them."""

    def __init__(self) -> None:
        self.values_of: dict[str, dict[str, float]] = {}

    def list_click_probabilities(
        self, scenario, queries, listings, *, sessions=None, questions=None
    ):
        values = [[0.5 + 0.5 * Random(text).random() for text in texts] for texts in listings]
        for query, texts, own in zip(queries, listings, values, strict=True):
            self.values_of.setdefault(query, {}).update(zip(texts, own, strict=True))
        return [np.array(own) for own in values]


@contextmanager
def policies(run: Path, bundle: Path, confidence: float = 0.5) -> Iterator[PolicyLists]:
    with closing(ServedBundle(bundle, num_threads=1)) as served:
        questions = [Question("suggestion", queries[0]) for queries in topic_queries()[:8]]
        yield PolicyLists(run, served, questions, max_edges=32, num_listed=5, confidence=confidence)


def test_the_ceiling_is_picked_by_the_truth_however_rarely_texts_were_drawn(
    trained_run: Path, tiny_bundle: Path
) -> None:
    truth = RandomTruth()
    with policies(trained_run, tiny_bundle) as lists:
        made = lists.ceiling(trained_run / "generator", "ceiling", truth, num_lists=64, seed=0)
    assert len(made) == 8
    for produced in made:
        values = truth.values_of[produced.query]
        assert len(values) > 20
        assert produced.query not in values
        assert list(produced.texts) == sorted(values, key=lambda text: -values[text])[:5]


def test_a_search_offers_texts_that_its_generator_is_sure_of_and_no_lists(
    trained_run: Path, tmp_path: Path
) -> None:
    write_sample_bundle(tmp_path / "beams", mode="beam")
    generator = trained_run / "generator"
    how = {"num_lists": 1, "temperature": 1.0, "seed": 0}
    with policies(trained_run, tmp_path / "beams", confidence=100) as lists:
        likeliest = lists.greedy(generator, "greedy", is_cold=False)
        composed = lists.composed(generator, "composed", **how)
        assert [p.texts[0] for p in composed] == [p.texts[0] for p in likeliest]
        with pytest.raises(ValueError, match="no lists to choose from"):
            lists.best_drawn(generator, "lists", **how)
    with policies(trained_run, tmp_path / "beams", confidence=0) as lists:
        by_reward = lists.composed(generator, "composed", **how)
    assert [p.texts[0] for p in by_reward] != [p.texts[0] for p in likeliest]


def test_the_page_says_what_was_compared_and_what_makes_it_doubtful() -> None:
    def one(name: str) -> AblationRow:
        every = {"suggestion": Interval(1, 1, 1)}
        return AblationRow(
            name=name,
            true_ctr=0.02,
            ci_low=0.01,
            ci_high=0.03,
            relevance=0.5,
            distinct=1,
            gain=Interval(1, 1, 1),
            by_scenario=every,
            gain_by_scenario=every,
        )

    def learnt(*num_prompts: int) -> AlignmentMetrics:
        rounds = [
            Round(
                num_prompts=num,
                num_equal=0,
                num_lists=num,
                draw_s=1,
                judge_s=1,
                update_s=1,
                num_steps=1,
                mean_reward={},
                gap={},
                before={},
                after={},
                step=1,
            )
            for num in num_prompts
        ]
        return AlignmentMetrics(mode="beam", objective="pl", rounds=rounds)

    page = report_page(
        report.AblationReport(
            bundle_id="b",
            is_simulated=True,
            num_questions=30,
            num_listed=5,
            ablation=[one(report.SFT)],
            alignment_gain=Interval(1.1, 1.05, 1.15),
            headroom_closed=Interval(0.12, 0.06, 0.18),
            placebo=one(report.PLACEBO),
            ceiling=one(report.CEILING),
            second_world=[one(report.SFT)],
            rounds=learnt(12000, 8000),
            placebo_rounds=learnt(300),
            closed_loop=[],
            examples=[],
            warnings=["it is not the run's"],
            num_known=7,
            truths=["seed 0, click model pbm", "seed 1, click model cascade"],
        )
    )
    assert "had one round of 300 prompts, taken whole; the aligned generator 2 of 20000" in page
    assert "closes 12 [6, 18] % of the way" in page
    assert "another truth: seed 1, click model cascade; that of the run has seed 0," in page
    assert "lacks. Left out are 7 that it has." in page
    assert page.index("Warning: it is not the run&#x27;s") < page.index("Brackets are")


def test_a_report_of_older_code_can_still_be_read_and_shown() -> None:
    content = json.loads((ROOT / "examples/bundle/report.json").read_bytes())
    for name in ("warnings", "num_known", "truths"):
        content.pop(name, None)
    page = report_page(msgspec.convert(content, report.AblationReport))
    assert "by another truth." in page
    assert "Warning" not in page


def test_a_composed_list_keeps_the_order_that_makes_it_diverse() -> None:
    values = {"red shoes": 0.30, "red shoes men": 0.29, "red shoes cheap": 0.28, "boots": 0.2}
    pool = drawn([["red shoes", "red shoes men"], ["red shoes cheap", "boots"]])
    assert ranked_texts(pool, worth(values), 0.0)[:2] == ["red shoes", "boots"]


def test_the_best_drawn_list_is_that_of_the_best_texts_that_are_listed() -> None:
    """The first has more to offer in three places, the second in two."""
    values = {"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.25, "e": 0.25, "f": 0.0}
    pool = drawn([["a", "b", "c"], ["d", "f", "e"]])
    assert best_drawn(pool, worth(values), (), 2) == ["d", "e", "f"]
    assert best_drawn(pool, worth(values), (), 3) == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_aligned_run_is_reported_by_one_command(
    simulated_run: SimulatedRun, tmp_path: Path
) -> None:
    run, bundle = simulated_run
    write_rounds(ROUNDS, tmp_path / "rounds.json")
    config, second = tmp_path / "config.toml", tmp_path / "second"
    config.write_text(
        "seed = 1\n[simulate]\nnum_queries = 2000\nnum_searches = 2000\nnum_users = 100\n"
        'num_requests = 100\nclick_model = "cascade"\n'
    )
    made = command("train", "simulate", "--config", str(config), "--run", str(second))
    assert made.returncode == 0, made.stderr
    known = sorted(read_traffic(run).before)[:3]
    heldout = tmp_path / "heldout.txt"
    heldout.write_text("\n".join([*sorted(read_queries(HELDOUT))[::100], *known]))
    made = command(
        *("train", "report", "--run", str(run), "--bundle", str(bundle)),
        *("--out", str(tmp_path / "report"), "--heldout", str(heldout)),
        *("--second-world", str(second / "simulated"), "--queries", "10"),
        *("--placebo-prompts", "20", "--closed-loop", str(tmp_path / "rounds.json")),
    )
    assert made.returncode == 0, made.stderr
    found = json.loads((tmp_path / "report/report.json").read_bytes())
    assert found["is_simulated"] is True
    assert [row["name"] for row in found["ablation"]] == [
        report.SFT, report.ALIGNED, report.SFT_WARM, report.FULL, report.BEST_OF, report.COMPOSED,
    ]  # fmt: skip
    ctr = {row["name"]: row["true_ctr"] for row in found["ablation"]}
    for row in found["ablation"]:
        assert row["ci_low"] <= row["true_ctr"] <= row["ci_high"]
        assert row["gain"][0] == pytest.approx(row["true_ctr"] / ctr[report.SFT])
    assert found["alignment_gain"][0] == pytest.approx(ctr[report.FULL] / ctr[report.SFT_WARM])
    low_to_high = [found["headroom_closed"][i] for i in (1, 0, 2)]
    assert low_to_high == sorted(low_to_high)
    assert found["placebo"]["name"] == report.PLACEBO
    (placebo,) = found["placebo_rounds"]["rounds"]
    assert (placebo["num_prompts"], placebo["step"]) == (20, 1.0)
    assert [row["name"] for row in found["second_world"]] == [*ctr]
    assert [row["true_ctr"] for row in found["second_world"]] != [*ctr.values()]
    assert found["truths"] == ["seed 0, click model pbm", "seed 1, click model cascade"]
    assert (found["num_known"], found["warnings"]) == (3, [])
    assert [r["num_clicks"] for r in found["closed_loop"]] == [0, 7, 14]
    assert {e["scenario"] for e in found["examples"]} == {
        "suggestion", "completion", "clarification",
    }  # fmt: skip
    page = (tmp_path / "report/report.html").read_text()
    for heading in ("Ablation", "In a second world", "The closed loop", "Side by side"):
        assert f"<h2>{heading}" in page
    assert "had one round of 20 prompts, taken whole; the aligned generator 1 of 60 in all" in page
