"""Judges texts that nobody clicked yet: what a trained click model expects of them, and how surely.

Features, contexts and calibration are those of training and serving. Knows nothing of lists.
"""

# A questions, C texts of one, N texts of all
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from engine.formats.features import FEATURE_NAMES
from engine.formats.prompt import SideInformation
from engine.formats.token_statistics import TOKEN_STATISTICS, TokenStatistics
from train.clicks.data import RequestReader
from train.clicks.model import load_click_model
from train.clicks.scoring import click_activations
from train.clicks.uncertainty import load_uncertainty
from train.retrieval.pairs import EVER

_IS_KNOWN, _NPMI = FEATURE_NAMES.index("is_known"), FEATURE_NAMES.index("npmi")
_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("scenario", pa.string()),
        ("query", pa.string()),
        (
            "side_information",
            pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())])),
        ),
        ("position", pa.int64()),
        ("text", pa.string()),
        ("clicked", pa.bool_()),
        ("split", pa.string()),
    ]
)
Floats = NDArray[np.float64]


class Judged(NamedTuple):
    """A question and texts that might answer it; all normalised."""

    scenario: str
    query: str
    side_information: Sequence[SideInformation]
    texts: Sequence[str]  # at least one
    is_cold: bool = False  # judged as if the log did not know what is searched with the query


class Judgement(NamedTuple):
    """What is expected of the texts of one question."""

    p_seen_C: Floats  # p(click | seen)
    lower_C: Floats  # what it exceeds with the probability asked for
    is_known_C: NDArray[np.bool_]  # whether the log knows the text


class Judge(Protocol):
    """Says what is expected of texts."""

    def __call__(self, questions: Sequence[Judged], *, level: float) -> list[Judgement]:
        """Returns a judgement a question; lower bounds hold with probability `level`."""
        ...


class ClickJudge:
    """The click model of a run directory."""

    def __init__(self, run: Path, *, max_edges: int) -> None:
        """Loads model and uncertainty.

        Args:
            run: run directory, with a click model.
            max_edges: of the index, see `train.clicks.data.RequestReader`.

        Raises:
            ValueError: the run has no click model, or one of another release.
        """
        directory = run / "click_model"
        if not (directory / "config.json").is_file():
            raise ValueError(
                f"{directory}: there is no click model, which alignment takes its rewards from: "
                "bring impressions, or run `queryrec-train click` first"
            )
        device = PartialState(cpu=not torch.cuda.is_available()).device
        self._model = load_click_model(directory).to(device)
        self._uncertainty = load_uncertainty(directory)
        self._reader = RequestReader(
            run,
            max_edges=max_edges,
            statistics=TokenStatistics.load(directory / TOKEN_STATISTICS),
            searches=EVER,
        )

    def __call__(self, questions: Sequence[Judged], *, level: float) -> list[Judgement]:
        """Returns a judgement a question.

        Args:
            questions: any number.
            level: probability with which the lower bounds hold, between 0 and 1.

        Raises:
            ValueError: the model's probabilities are not numbers, or those of each scenario are
                all the same: a reward that prefers nothing.
        """
        if not questions:
            return []
        requests = self._reader.of(table_of(questions))
        is_cold_N = np.array([asked.is_cold for asked in questions])[requests.request_N]
        requests.features_NF[is_cold_N, _NPMI] = 0
        activations_NE = click_activations(self._model, requests, np.arange(len(requests)))
        is_known_N = requests.features_NF[:, _IS_KNOWN] > 0
        scenario_N = np.array(requests.scenarios)[requests.scenario_R[requests.request_N]]
        p_N, lower_N = np.empty(len(is_known_N)), np.empty(len(is_known_N))
        constant: list[str] = []
        names = sorted(set(scenario_N.tolist()))
        for name in names:
            rows = scenario_N == name
            inputs = name, activations_NE[rows], is_known_N[rows]
            p_N[rows] = self._uncertainty.probability(*inputs)
            lower_N[rows] = self._uncertainty.lower_bound(*inputs, level)
            if not (np.isfinite(p_N[rows]).all() and np.isfinite(lower_N[rows]).all()):
                raise ValueError(
                    f"the click model's {name} probabilities are not all numbers: its weights or "
                    "calibration are broken; train it again"
                )
            if prefers_nothing(p_N[rows], is_known_N[rows]):
                constant.append(name)
        if constant == names:
            raise ValueError(
                f"the click model gives every {' and every '.join(names)} text the same "
                "probability: it prefers nothing, so there is nothing to align to"
            )
        parts = zip(requests.offsets[:-1].tolist(), requests.offsets[1:].tolist(), strict=True)
        return [Judgement(p_N[a:b], lower_N[a:b], is_known_N[a:b]) for a, b in parts]


def prefers_nothing(p_N: NDArray[np.float64], is_known_N: NDArray[np.bool_]) -> bool:
    """Returns whether texts, those that the log knows and those that it does not, are all alike."""
    groups = [p_N[is_known_N], p_N[~is_known_N]]
    return max(map(len, groups)) > 1 and all(np.ptp(p) == 0 for p in groups if len(p))


def table_of(questions: Sequence[Judged]) -> pa.Table:
    """Returns the questions as a table that looks like mined impressions, in their order."""
    rows = [
        {
            "request_id": f"{number:012d}",
            "scenario": asked.scenario,
            "query": asked.query,
            "side_information": [item._asdict() for item in asked.side_information],
            "position": position,
            "text": text,
            "clicked": False,
            "split": "train",
        }
        for number, asked in enumerate(questions)
        for position, text in enumerate(asked.texts, start=1)
    ]
    return pa.Table.from_pylist(rows, _SCHEMA)
