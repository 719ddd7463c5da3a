"""What graphs of reduced precision write is held against fp32, sequence by sequence."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from engine.formats.prompt import Prompt
from engine.formats.vocabulary import NUM_CONTROL_IDS
from export import parity
from export.checkpoint import DecoderCheckpoint, Run
from export.generator import Mode, build_generator
from export.requests import decoding, max_new_tokens, sample_requests
from export.sample import write_sample_run


@pytest.fixture(scope="module")
def run(run_directory: Path) -> Run:
    return Run(run_directory)


@pytest.fixture(scope="module")
def checkpoint(run: Run) -> DecoderCheckpoint:
    return run.generator()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> DecoderCheckpoint:
    """A generator that has nothing to do with the run's."""
    directory = tmp_path_factory.mktemp("other") / "run"
    write_sample_run(directory, seed=4)
    return Run(directory).generator()


def graph(run: Run, checkpoint: DecoderCheckpoint, mode: Mode = "slots") -> onnx.ModelProto:
    tables = checkpoint.cos_sin(run.prompt.max_tokens + max_new_tokens(run, mode) + 24)
    return build_generator(
        checkpoint.state, checkpoint.shape, tables, mode=mode, with_logprobs=True
    )


@pytest.mark.parametrize("mode", ["slots", "list", "beam"])
def test_a_graph_agrees_with_itself(run: Run, checkpoint: DecoderCheckpoint, mode: Mode) -> None:
    exact = parity.session_of(graph(run, checkpoint, mode))
    requests = sample_requests(run, 24, seed=1)
    figures = parity.agreement(exact, exact, checkpoint, run, requests, mode)
    assert figures["equal_share"] == figures["first_token_equal_share"] == 1
    assert figures["mean_token_logprob_gap"] < 1e-5


def test_sequences_that_differ_count_in_the_gap(
    run: Run, checkpoint: DecoderCheckpoint, other: DecoderCheckpoint
) -> None:
    exact, strange = (parity.session_of(graph(run, c)) for c in (checkpoint, other))
    requests = sample_requests(run, 6, seed=1)
    figures = parity.agreement(exact, strange, checkpoint, run, requests, "slots")
    assert figures["equal_share"] < 0.1
    gaps = list[float]()
    for request in requests:
        how = decoding(run, request.scenario, "slots")
        written = parity.generate(strange, [(request, how)])[0]
        for slot, ids, logprob in zip(how.slots, written.ids, written.logprobs, strict=True):
            expected = logprob_in_torch(checkpoint, request.prompt, slot, ids)
            gaps.append(abs(float(logprob) - expected) / len(ids))
    assert figures["mean_token_logprob_gap"] == pytest.approx(np.mean(gaps), abs=1e-4)


def logprob_in_torch(
    checkpoint: DecoderCheckpoint, prompt: Prompt, slot: int, ids: list[int]
) -> float:
    """Returns the log-probability of a text, each token among those allowed at its place."""
    with torch.no_grad():
        logits_LV = checkpoint.model(torch.tensor([[*prompt.ids, slot, *ids]])).logits[0]
    logits_NV = logits_LV[len(prompt.ids) : -1]
    logits_NV[:, :NUM_CONTROL_IDS] = -torch.inf
    first, end = prompt.first_token_range
    logits_NV[0, :first] = logits_NV[0, end:] = -torch.inf
    return float(logits_NV.log_softmax(-1)[range(len(ids)), ids].sum())


def test_beams_count_whatever_their_order(run: Run, checkpoint: DecoderCheckpoint) -> None:
    model = graph(run, checkpoint, "beam")
    exact = parity.session_of(model)
    requests = [r for r in sample_requests(run, 24, seed=1) if r.scenario == "suggestion"]
    # Every sequence of this scenario is a beam: the worst of them first.
    ends = {"from": [-1], "to": [np.iinfo(np.int64).min], "axis": [1]}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(numbers, np.int64), name) for name, numbers in ends.items()
    )
    for output in model.graph.output:
        for node in model.graph.node:
            for place, name in enumerate(node.output):
                if name == output.name:
                    node.output[place] = f"ordered_{name}"
        inputs = [f"ordered_{output.name}", *ends, "from"]  # steps of -1
        model.graph.node.append(helper.make_node("Slice", inputs, [output.name]))
    figures = parity.agreement(exact, parity.session_of(model), checkpoint, run, requests, "beam")
    assert figures["sequences"] == 8 * len(requests)
    assert figures["equal_share"] == figures["first_token_equal_share"] == 1


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_right_probabilities_of_other_texts_are_no_agreement(precision: str) -> None:
    figures = {"sequences": 768.0, "equal_share": 1 / 768, "mean_token_logprob_gap": 0.009}
    with pytest.raises(parity.ParityError, match=rf"{precision} generator begins 0\.01 of its"):
        parity.check_agreement({**figures, "first_token_equal_share": 0.01}, precision)
    parity.check_agreement({**figures, "first_token_equal_share": 0.7}, precision)
