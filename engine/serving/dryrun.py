"""`serve --dry-run`: a gate before a rollout. Loads, verifies, warms and answers, then exits."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.answering.answer import Question
from engine.config import Config, load_keys
from engine.execution.bundle import Bundle
from engine.formats.manifest import ScenarioSpec
from engine.scheduling.costs import Work
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Probe
from engine.serving.loading import load_pipeline, make_runtime
from engine.serving.translation import response_of

_FALLBACK_QUERY = "queries"
_BUDGET_S = 10.0  # no stage should be left out


async def dry_run(bundle_directory: Path, config: Config) -> None:
    """Prints what each model run costs and how the bundle answers its own sample.

    Raises:
        ValueError: the bundle or the signing keys cannot be used, or a scenario gets no answer at
            all, or one with less than the bundle has.
    """
    keys = load_keys(config.feedback.keys_file)
    console, clock = Console(), MonotonicClock()
    runtime = make_runtime(config)
    costs = Table("stage", "kind", "rows", "ms", title="predicted cost of model runs")

    def report(work: Work, size: int, cost_s: float) -> None:
        kind = " x ".join(map(str, work.variant))
        costs.add_row(work.stage.value, kind, str(size), f"{cost_s * 1000:.1f}")

    pipeline = None
    try:
        pipeline = await load_pipeline(bundle_directory, runtime, config, clock, report)
        console.print(costs)
        bundle = pipeline.bundle
        for scenario in bundle.scenarios.values():
            question = Question(
                scenario=scenario,
                query=_sample_query(bundle, scenario),
                num_suggestions=scenario.num_suggestions,
                deadline=Deadline.after(_BUDGET_S, clock),
            )
            probe = Probe(clock)
            answer = await pipeline.recommend(question, probe)
            response_of(
                answer,
                question,
                request_id="dry-run",
                session_id="",
                bundle_id=bundle.manifest.bundle_id,
                keys=keys,
                probe=probe,
            )
            times = ", ".join(f"{stage} {s * 1000:.1f}" for stage, s in probe.finish())
            console.print(f"{scenario.name}: {len(answer.suggestions)} suggestions; ms: {times}")
            lead = f"{answer.auxiliary_text} " if answer.auxiliary_text else ""
            texts = " | ".join(s.text for s in answer.suggestions)
            console.print(f"  {question.query}: {lead}{texts}", markup=False)
            left_out = [
                f"{o.stage} {o.kind.name} {o.reason.name}".lower() for o in answer.omissions
            ]
            if left_out:
                console.print(f"{scenario.name} left out: {', '.join(left_out)}")
            if not answer.suggestions:
                raise ValueError(f"{bundle_directory}: {scenario.name} got no suggestion at all")
            if not all(o.is_harmless for o in answer.omissions):
                raise ValueError(
                    f"{bundle_directory}: {scenario.name} left out {', '.join(left_out)}, with "
                    f"{_BUDGET_S:.0f} s to answer; the log may say why"
                )
    finally:
        if pipeline is not None:
            await pipeline.close()
        runtime.close()


def _sample_query(bundle: Bundle, scenario: ScenarioSpec) -> str:
    """Returns the most searched query of the index, or the first half of it for completion."""
    query = bundle.index.text(int(bundle.index.popular(1)[0])) if bundle.index else _FALLBACK_QUERY
    return query[: (len(query) + 1) // 2].rstrip() if scenario.completes_prefix else query
