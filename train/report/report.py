"""Assembles the report of a run on simulated logs: ablation, placebo, ceiling, a second world.

Knows nothing of how a page looks.
"""

import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from train import simulator
from train.alignment.history import AlignmentMetrics
from train.alignment.rounds import align
from train.config import TrainConfig, read_config
from train.evaluation.completion import never_searched
from train.evaluation.intervals import Interval, ratio_interval
from train.evaluation.lists import ProducedList
from train.evaluation.origin import doubts
from train.evaluation.served import ServedBundle
from train.evaluation.suite import questions_of, read_queries
from train.evaluation.traffic import read_traffic
from train.generation.generator import METRICS, read_prompts
from train.generation.prompting import prompted_texts
from train.models.checkpoint import read_tokenizer
from train.report.ablation import AblationRow, ablation_rows, list_ctr, queries_of
from train.report.closed_loop import LoopRound, read_rounds
from train.report.examples import Example, examples_of
from train.report.placebo import PlaceboJudge
from train.report.policies import PolicyLists, Question
from train.settings import AlignmentConfig

NUM_LISTED = 5
PROMPTED = "prompting, nothing trained"
SFT, ALIGNED = "SFT, no co-occurrence", "+ alignment, no co-occurrence"
SFT_WARM, FULL = "SFT + co-occurrence", "+ alignment + co-occurrence"
BEST_OF = "best of eight lists drawn, by the click model"
COMPOSED = "best texts of eight lists drawn, by the click model"
SEARCHED = "best texts of a search eight times as wide, by the click model"
PLACEBO, CEILING = "+ placebo alignment", "best of as many texts, by the truth"
_NUM_DRAWN = 8
Report = Callable[[str], None]


class AblationReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report.

    Attributes:
        bundle_id: of the bundle whose look-ups were used.
        warnings: what makes figures doubtful.
        num_questions: held-out queries, each in all scenarios.
        num_known: held-out queries that were not asked because the run's log has them.
        num_listed: N, texts of a list.
        ablation: a row a system; gains are over SFT without co-occurrence.
        alignment_gain: aligned over SFT, both with co-occurrence.
        headroom_closed: (aligned - SFT) / (ceiling - SFT), all with co-occurrence.
        placebo: a round of the same procedure with a reward that means nothing, whatever the guard
            of rounds would say; gain over SFT with co-occurrence. None if it was not asked for.
        ceiling: best lists of what SFT draws, by the truth; gain over SFT with co-occurrence.
        second_world: the same lists by another truth; empty if none was given.
        truths: which truth scores the lists, and which one the second world's; likewise.
        rounds: how the alignment went.
        placebo_rounds: how that of the placebo went; `num_prompts` says what it learnt from.
        closed_loop: rounds of serving and learning; empty if none were given.
        examples: lists side by side.
    """

    bundle_id: str
    is_simulated: bool
    num_questions: int
    num_listed: int
    ablation: list[AblationRow]
    alignment_gain: Interval
    headroom_closed: Interval
    placebo: AblationRow | None
    ceiling: AblationRow
    second_world: list[AblationRow]
    rounds: AlignmentMetrics
    placebo_rounds: AlignmentMetrics | None
    closed_loop: list[LoopRound]
    examples: list[Example]
    warnings: list[str] = []
    num_known: int = 0
    truths: list[str] = []


def make_report(
    run: Path,
    bundle: Path,
    heldout: Path,
    *,
    second_world: Path | None,
    prompted: str = "",
    kept: Path,
    closed_loop: Path | None = None,
    placebo_prompts: int,
    num_queries: int,
    seed: int,
    report: Report = print,
) -> AblationReport:
    """Returns the report of a run that was trained and aligned on simulated logs.

    Args:
        run: run directory.
        bundle: exported from it.
        heldout: queries; those that the run's log has are not asked.
        second_world: directory of another simulation, whose truth scores the same lists.
        prompted: checkpoint of a language model that writes lists as it comes; empty: none.
        kept: file for these lists, see `train.generation.prompting.prompted_texts`.
        closed_loop: file of rounds, see `train.report.closed_loop`.
        placebo_prompts: prompts of a round aligned with a reward that means nothing; 0: none.
        num_queries: held-out queries, each in all scenarios.
        seed: of what is drawn.
        report: called with what is being done.

    Raises:
        ValueError: the run is not aligned or its logs are real, or bundle and run do not fit,
            or the second world is the run's own, or the checkpoint cannot be loaded, or there are
            no rounds in the file of the closed loop, or the log has all held-out queries.
    """
    if not (run / "simulated/world.json").is_file():
        raise ValueError(f"{run}: its logs are real, so the worth of lists is not known")
    truths = _truths(run / "simulated", second_world)
    aligned_metrics = run / "aligned" / METRICS
    if not aligned_metrics.is_file():
        raise ValueError(
            f"{run}: has no aligned generator; set alignment.num_rounds to 1 or more in its "
            "configuration, run `queryrec-train run` again, and export it"
        )
    if prompted and not kept.is_file():  # else it may have written all, and be needed no more
        read_tokenizer(prompted)
    rounds_of_loop = [] if closed_loop is None else read_rounds(closed_loop)
    config, truth = read_config(run / "config.toml"), simulator.load(run / "simulated")
    with closing(ServedBundle(bundle)) as served:
        warnings = doubts(served.bundle.manifest, run)
        for warning in warnings:
            report(f"warning: {warning}")
        given = read_queries(heldout)
        new = never_searched(given, read_traffic(run))
        questions = [Question(*q) for q in questions_of(served, new, num_queries, seed)]
        if not questions:
            raise ValueError(
                f"{heldout}: has no query of 4 characters to 200 bytes that {run} lacks"
            )
        lists = PolicyLists(
            run,
            served,
            questions,
            max_edges=config.index.max_edges,
            num_listed=NUM_LISTED,
            confidence=config.alignment.confidence,
        )
        report(f"lists for {len(questions)} questions")
        systems = _systems(
            lists, run, temperature=config.alignment.temperature, seed=seed, report=report
        )
        warm, full = systems[SFT_WARM], systems[FULL]
        if prompted:
            report(PROMPTED)
            written = prompted_texts(
                prompted, questions, served.bundle.scenarios, kept=kept, report=report
            )
            made = [
                ProducedList(scenario=s, query=q, system=PROMPTED, texts=tuple(texts[:NUM_LISTED]))
                for (s, q), texts in zip(questions, written, strict=True)
            ]
            systems = {PROMPTED: made, **systems}
        report(CEILING)
        best = lists.ceiling(run / "generator", CEILING, truth, num_lists=_NUM_DRAWN, seed=seed)
        beside, placebo_rounds = [best], None
        if placebo_prompts:
            report(f"alignment of {placebo_prompts} prompts with a placebo")
            with tempfile.TemporaryDirectory() as directory:
                placebo_rounds = _align_with_placebo(
                    run, config, placebo_prompts, Path(directory), seed, report
                )
                beside.append(lists.greedy(Path(directory), PLACEBO, is_cold=False))
        over_warm = {
            row.name: row
            for row in ablation_rows(
                [warm, full, *beside], truth, served, num_listed=NUM_LISTED, baseline=SFT_WARM
            )
        }
        other: list[AblationRow] = []
        if second_world is not None:
            report("the second world")
            other = ablation_rows(
                [*systems.values()],
                simulator.load(second_world),
                served,
                num_listed=NUM_LISTED,
                baseline=SFT,
            )
        ablation = ablation_rows(
            [*systems.values()], truth, served, num_listed=NUM_LISTED, baseline=SFT
        )
        ctr_of = {
            name: list_ctr(made, truth, NUM_LISTED)
            for name, made in ((SFT_WARM, warm), (FULL, full), (CEILING, best))
        }
        query_U = queries_of(warm)
        return AblationReport(
            bundle_id=served.bundle.manifest.bundle_id,
            is_simulated=True,
            num_questions=len(questions),
            num_listed=NUM_LISTED,
            ablation=ablation,
            alignment_gain=ratio_interval(ctr_of[FULL], ctr_of[SFT_WARM], cluster_U=query_U),
            headroom_closed=ratio_interval(
                ctr_of[FULL] - ctr_of[SFT_WARM],
                ctr_of[CEILING] - ctr_of[SFT_WARM],
                cluster_U=query_U,
            ),
            placebo=over_warm.get(PLACEBO),
            ceiling=over_warm[CEILING],
            second_world=other,
            rounds=msgspec.json.decode(aligned_metrics.read_bytes(), type=AlignmentMetrics),
            placebo_rounds=placebo_rounds,
            closed_loop=rounds_of_loop,
            examples=examples_of(warm, full, truth, NUM_LISTED),
            warnings=warnings,
            num_known=len(given) - len(new),
            truths=truths,
        )


def _truths(world: Path, second_world: Path | None) -> list[str]:
    """Returns what tells the truth of a run from that of a second world, if there is one."""
    if second_world is None:
        return []
    own, other = simulator.read_record(world), simulator.read_record(second_world)
    if (own.seed, own.click_model) == (other.seed, other.click_model):
        raise ValueError(
            f"second world {second_world}: has the run's own seed and click model; simulate one "
            "with another seed or simulate.click_model"
        )
    return [f"seed {r.seed}, click model {r.click_model}" for r in (own, other)]


def _systems(
    lists: PolicyLists, run: Path, *, temperature: float, seed: int, report: Report
) -> dict[str, list[ProducedList]]:
    """Returns the lists of each system, by its name, in the order of the report."""
    sft, aligned = run / "generator", run / "aligned"
    systems = {
        SFT: lists.greedy(sft, SFT, is_cold=True),
        ALIGNED: lists.greedy(aligned, ALIGNED, is_cold=True),
        SFT_WARM: lists.greedy(sft, SFT_WARM, is_cold=False),
        FULL: lists.greedy(aligned, FULL, is_cold=False),
    }
    rivals = {
        "beam": {SEARCHED: lists.composed},
        "slots": {BEST_OF: lists.best_drawn, COMPOSED: lists.composed},
        "list": {BEST_OF: lists.best_drawn},
    }
    for name, chosen in rivals[lists.mode].items():
        report(name)
        systems[name] = chosen(sft, name, num_lists=_NUM_DRAWN, temperature=temperature, seed=seed)
    return systems


def _align_with_placebo(
    run: Path, config: TrainConfig, num_prompts: int, output: Path, seed: int, report: Report
) -> AlignmentMetrics:
    settings: AlignmentConfig = msgspec.structs.replace(
        config.alignment, num_rounds=1, num_prompts=num_prompts
    )
    return align(
        run,
        settings,
        read_prompts(run),
        max_edges=config.index.max_edges,
        seed=seed,
        output=output,
        judge=PlaceboJudge(seed=seed),
        is_guarded=False,  # else most rounds are refused, and the row is what it began with
        report=report,
    )
