"""Trains and calibrates the click model on shown impressions.

The position tower of PAL (see train.clicks.calibration) is trained beside the model and then
dropped: serving knows the model and its calibration only. Knows nothing of how impressions were
mined.
"""

# R requests, N impressions (rows), B requests of a batch, C candidates, P positions
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaModel, set_seed

from engine.formats.features import FEATURE_NAMES
from engine.formats.vocabulary import Vocabulary
from train.clicks.calibration import Quality, auc, gauc, pal_loss, quality
from train.clicks.data import ClickBatch, ClickRequests, make_batch, read_requests, training_order
from train.clicks.fitting import ClickFit, fit_click_model, scenario_rows, seen_probability
from train.clicks.model import ClickModel, save_click_model
from train.clicks.pretraining import session_requests
from train.clicks.scoring import click_logits
from train.clicks.uncertainty import save_uncertainty
from train.clicks.unknown import unknown_requests
from train.models.backbone import Shape, llama_config
from train.models.pace import PacedTrainer, trainer_arguments
from train.models.shared_prefix import PackedBatch
from train.settings import ClickModelConfig, Places

_TOWER_SPEED = 20.0  # the tower has few parameters and far to go: its steps are so much larger
_LOG_POPULARITY = FEATURE_NAMES.index("log_popularity")
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickReport:
    """Quality on the validation split of one scenario, or of all ("all")."""

    num_requests: int
    num_impressions: int
    click_rate: float
    model: Quality  # p(click | seen) * p(seen | position)
    position_only: Quality  # click rate per scenario and position in the training split
    popularity_auc: float
    popularity_gauc: float
    logit_gauc: float  # the model without the position it was shown at
    num_swapped: int  # held-out impressions that exploration moved

    def describe(self, name: str) -> str:
        """Returns one line for people."""
        model, position = self.model, self.position_only
        return (
            f"click model, {name}: {self.num_impressions} held-out impressions, "
            f"click rate {self.click_rate:.4f}, AUC {model.auc:.3f} "
            f"(position only {position.auc:.3f}, popularity {self.popularity_auc:.3f}), "
            f"GAUC {model.gauc:.3f} ({position.gauc:.3f}, {self.popularity_gauc:.3f}), "
            f"normalised entropy {model.normalised_entropy:.3f} "
            f"({position.normalised_entropy:.3f}), relative ECE {model.relative_ece:.3f}"
        )


def train_click_model(
    run: Path,
    config: ClickModelConfig,
    *,
    shape: Shape,
    max_edges: int,
    seed: int,
    output: Path,
    raw_impressions: Places = "",
) -> dict[str, ClickReport] | None:
    """Trains on `run`/mined/impressions.parquet and writes the click model into `output`.

    Besides the model: calibration.json (scenario -> slope, intercept), position.json (scenario
    -> p(seen | position)), uncertainty.safetensors and metrics.json. A call that was interrupted
    goes on from its last checkpoint in `output`. Scenarios without held-out impressions keep
    slope 1, intercept 0.

    Args:
        run: run directory, mined.
        config: training.
        shape: of the backbone.
        max_edges: of the index, see `read_requests`.
        seed: of weights and order.
        output: directory of the stage.
        raw_impressions: place of the log that was mined: texts below k are calibrated on its
            held-out rows (see `train.clicks.unknown`); empty: they are calibrated like others.

    Returns:
        The reports per scenario that has held-out impressions, and of "all"; None if there are
        no impressions (then nothing is written: bundles serve without a click model).

    Raises:
        ValueError: no clicks or nothing but clicks in a split, or a model that learned to say
            the same for everything.
    """
    requests = read_requests(run, max_edges=max_edges)
    if requests is None:
        print("no impressions were mined: no click model", file=sys.stderr)
        return None
    train = np.flatnonzero(~requests.is_valid_R)
    valid = np.flatnonzero(requests.is_valid_R)
    for name, chosen in (("train", train), ("valid", valid)):
        _check_clicks(requests, chosen, name)
    num_sessions = round(config.session_share * len(train))
    sessions = session_requests(run, num_requests=num_sessions, seed=seed)
    set_seed(seed)
    vocab_size = Vocabulary.load(run / "tokenizer.json").size
    model = ClickModel(LlamaModel(llama_config(shape, vocab_size)))
    num_positions = max(2, int(requests.position_N.max()) + 1)
    limit_s = config.max_train_s / (1 if sessions is None else 2)
    if sessions is not None:
        _train(
            _Choice(model),
            sessions,
            np.arange(len(sessions)),
            config,
            seed,
            output / "checkpoints/sessions",
            num_epochs=1,
            hidden_share=0,
            max_train_s=limit_s,
        )
    trainer = _train(
        _Pal(model, len(requests.scenarios), num_positions),
        requests,
        train,
        config,
        seed,
        output / "checkpoints/clicks",
        num_epochs=config.num_epochs,
        hidden_share=config.hidden_log_share,
        max_train_s=limit_s,
    )
    model.eval()

    raw = None
    if raw_impressions:
        raw = unknown_requests(run, raw_impressions, max_edges=max_edges, seed=seed)
    logits = click_logits(model, requests, valid)
    fit = fit_click_model(
        model, requests, logits, raw, hidden_share=config.hidden_log_share, seed=seed
    )
    reports = _reports(requests, train, valid, logits, fit)
    for name, report in reports.items():
        print(report.describe(name))

    save_click_model(model, output)
    save_uncertainty(fit.uncertainty, output)
    curves = {name: e.seen_P.tolist() for name, e in fit.examinations.items()}
    for file, content in (
        ("calibration.json", fit.calibrations),
        ("unknown_calibration.json", fit.unknown_calibrations),
        ("position.json", curves),
        ("metrics.json", reports),
    ):
        (output / file).write_bytes(msgspec.json.format(msgspec.json.encode(content)))
    if trainer.is_world_process_zero():
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return reports


class _Requests(Dataset[int]):
    """Numbers of requests in the order of training."""

    def __init__(self, order: Ids) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> int:
        return int(self._order[index])


class _Pal(nn.Module):
    """Click model and position tower, as they are trained together."""

    def __init__(self, model: ClickModel, num_scenarios: int, num_positions: int) -> None:
        super().__init__()
        self.model = model
        # p(seen | position) starts at 1 / sqrt(position).
        start_P = torch.special.logit(torch.arange(2.0, num_positions + 1) ** -0.5)
        self.start: Tensor
        self.register_buffer("start", start_P.expand(num_scenarios, -1).clone())
        # A vector, as what is no matrix of a layer: Muon takes matrices (train.models.optimizer).
        self.tower = nn.Parameter(torch.zeros(start_P.numel() * num_scenarios))

    def forward(self, batch: ClickBatch) -> Tensor:
        """Returns the mean loss of the shown candidates, a scalar."""
        logits_BC = self.model.packed_logits(batch.packed, batch.features)
        seen_SP = torch.sigmoid(self.start + _TOWER_SPEED * self.tower.view_as(self.start))
        seen_SP = torch.cat([torch.ones_like(seen_SP[:, :1]), seen_SP], dim=1)
        seen_BC = seen_SP[batch.scenario[:, None], batch.position]
        shown_BC = batch.packed.suffix_mask
        return pal_loss(logits_BC[shown_BC], seen_BC[shown_BC], batch.clicked[shown_BC]).mean()


class _Choice(nn.Module):
    """Click model as it learns from sessions: the first candidate is the right one."""

    def __init__(self, model: ClickModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ClickBatch) -> Tensor:
        """Returns the mean cross-entropy of choosing the right candidate, a scalar."""
        logits_BC = self.model.packed_logits(batch.packed, batch.features)
        logits_BC = logits_BC.masked_fill(~batch.packed.suffix_mask, -1e9)
        return F.cross_entropy(logits_BC, torch.zeros_like(batch.scenario))


class _BatchTrainer(PacedTrainer):
    """Trainer whose model returns its loss."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        # Trainer moves tensors in mappings to the device, but not in named tuples.
        packed = PackedBatch(**inputs["packed"])
        return model(ClickBatch(**{**inputs, "packed": packed}))


def _train(
    module: nn.Module,
    requests: ClickRequests,
    chosen: Ids,
    config: ClickModelConfig,
    seed: int,
    checkpoints: Path,
    *,
    num_epochs: float,
    hidden_share: float,
    max_train_s: float,
) -> _BatchTrainer:
    order = training_order(
        requests, chosen, num_epochs=num_epochs, batch_size=config.batch_size, seed=seed
    )

    def collator(numbers: list[int]) -> dict[str, Any]:
        batch = make_batch(requests, numbers, hidden_share=hidden_share, seed=seed)
        return {**batch._asdict(), "packed": batch.packed._asdict()}

    trainer = _BatchTrainer(
        model=module,
        args=trainer_arguments(
            checkpoints,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            bf16=config.bf16,
            seed=seed,
        ),
        train_dataset=_Requests(order),
        data_collator=collator,
        max_train_s=max_train_s,
        warmup_share=0.05,
        matrix_learning_rate=config.matrix_learning_rate,
    )
    trainer.train_resumable()
    return trainer


def _check_clicks(requests: ClickRequests, chosen: Ids, split: str) -> None:
    if len(chosen) == 0:
        raise ValueError(f"the {split} split has no impressions: bring a longer log")
    clicked = requests.clicked_N[requests.rows(chosen)]
    if clicked.all() or not clicked.any():
        raise ValueError(
            f"{'all' if clicked.any() else 'none'} of the {len(clicked)} shown impressions of the "
            f"{split} split are clicked: there is nothing to learn; check the column 'clicked'"
        )


def _reports(
    requests: ClickRequests, train: Ids, valid: Ids, logits: Floats, fit: ClickFit
) -> dict[str, ClickReport]:
    rows = requests.rows(valid)
    probability_N, baseline_N = np.zeros(len(rows)), np.zeros(len(rows))
    masks = scenario_rows(requests, rows)
    for name, mask in masks.items():
        position_N = requests.position_N[rows[mask]]
        platt = fit.calibrations[name]
        level_N = platt.slope * logits[mask].astype(np.float64) + platt.intercept
        probability_N[mask] = seen_probability(fit.examinations.get(name), position_N) / (
            1 + np.exp(-level_N)
        )
        baseline_N[mask] = _position_rates(requests, train, name)[position_N]
    masks["all"] = np.ones(len(rows), np.bool_)
    result: dict[str, ClickReport] = {}
    for name, mask in masks.items():
        own = rows[mask]
        clicked_N, request_N = requests.clicked_N[own], requests.request_N[own]
        popularity_N = requests.features_NF[own, _LOG_POPULARITY]
        result[name] = ClickReport(
            num_requests=len(np.unique(request_N)),
            num_impressions=len(own),
            click_rate=float(clicked_N.mean()),
            model=quality(probability_N[mask], clicked_N, request_N),
            position_only=quality(baseline_N[mask], clicked_N, request_N),
            popularity_auc=auc(popularity_N, clicked_N),
            popularity_gauc=gauc(popularity_N, clicked_N, request_N),
            logit_gauc=gauc(logits[mask], clicked_N, request_N),
            num_swapped=int((requests.rank_N[own] != requests.position_N[own]).sum()),
        )
    return result


def _position_rates(requests: ClickRequests, train: Ids, scenario: str) -> NDArray[np.float64]:
    """Returns click rates (P) per position in the training split, shrunk to their mean."""
    rows = requests.rows(train)
    mask = scenario_rows(requests, rows).get(scenario)
    num_positions = int(requests.position_N.max()) + 1
    if mask is None:
        return np.full(num_positions, requests.clicked_N[rows].mean())
    own = rows[mask]
    shown_P = np.bincount(requests.position_N[own], minlength=num_positions)
    clicks_P = np.bincount(
        requests.position_N[own], requests.clicked_N[own].astype(np.float64), num_positions
    )
    return (clicks_P + requests.clicked_N[own].mean()) / (shown_P + 1)
