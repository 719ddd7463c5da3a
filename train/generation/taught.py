"""What the sources of each scenario would teach, told before a training by some of them.

Knows nothing of models.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.formats.manifest import ScenarioSpec
from train.generation.examples import ExampleMaker, Source
from train.generation.responses import ResponseEncoder

_MAX_TRIED = 1000  # sources of a scenario
_LEAST_FITTING = 0.7  # of a scenario's texts; below, the short ones are no picture of all
_REMEDY = (
    "raise it in [[scenarios]], or use a size whose tokenizer is made from the log (all but base)"
)


class Taught(NamedTuple):
    """What sources come to."""

    share: float  # of all sources that give an example, about
    fitting: dict[str, float]  # scenario -> share of its texts that fit; no entry without texts


def examine(
    sources: Sequence[Source],
    scenarios: Sequence[ScenarioSpec],
    maker: ExampleMaker,
    encoder: ResponseEncoder,
    mode: str,
    report: Callable[[str], None],
) -> Taught:
    """Tries up to 1,000 sources of each scenario.

    Args:
        sources: in random order.
        scenarios: of the run.
        maker: of examples.
        encoder: of responses.
        mode: the form that is taught.
        report: called with a warning for each scenario that nothing teaches, that is taught short
            texts alone because most do not fit, or some of whose auxiliary texts do not.
    """
    fitting: dict[str, float] = {}
    num_given = 0.0
    for spec in scenarios:
        own = [s for s in sources if s.scenario == spec.name]
        tried, rng = own[:_MAX_TRIED], random.Random(0)
        num_examples = num_texts = num_fitting = 0
        for example in filter(None, (maker(source, rng) for source in tried)):
            num_examples += encoder(example, rng) is not None
            num_texts += len(example.suggestions)
            num_fitting += encoder.num_fitting(example)
        num_given += len(own) * num_examples / max(1, len(tried))
        if num_texts:
            fitting[spec.name] = round(num_fitting / num_texts, 3)
        if fitting.get(spec.name, 1) < _LEAST_FITTING:
            report(_too_long(spec, fitting[spec.name]))
        elif not num_examples:
            report(_untaught(spec, mode))
        auxiliary = {s.auxiliary_text for s in own if s.auxiliary_text}
        num_long = sum(encoder.auxiliary_ids(spec.name, text) is None for text in auxiliary)
        if num_long:
            report(_long_auxiliary(spec, num_long, len(auxiliary)))
    return Taught(num_given / max(1, len(sources)), fitting)


def _too_long(spec: ScenarioSpec, share: float) -> str:
    return (
        f"warning: {share:.0%} of the texts that would teach {spec.name} fit its max_new_tokens "
        f"({spec.max_new_tokens}), and longer ones are left out: {_REMEDY}"
    )


def _long_auxiliary(spec: ScenarioSpec, num_long: int, num: int) -> str:
    return (
        f"warning: {num_long} of {num} auxiliary texts that would teach {spec.name} do not fit its "
        f"max_auxiliary_tokens ({spec.max_auxiliary_tokens}) and are left out: {_REMEDY}"
    )


def _untaught(spec: ScenarioSpec, mode: str) -> str:
    lacking = "no clicked panels"
    if not spec.has_auxiliary_text:
        lacking = "no searches that follow one another, and no clicked panels"
    elif mode == "list":
        lacking = "no clicked panels with an auxiliary text that fits"
    return (
        f"warning: nothing teaches {spec.name}: {lacking}; leave it out of [[scenarios]] or bring "
        "impressions, or it answers nonsense"
    )
