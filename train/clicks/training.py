"""Trains and calibrates the click model on shown impressions.

The position tower of PAL (see train.clicks.calibration) is trained beside the model and then
dropped: serving knows the model and its calibration only. Knows nothing of how impressions were
mined.
"""

# R requests, N impressions (rows), B requests of a batch, C candidates, P positions
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaModel, set_seed

from engine.formats.token_statistics import TOKEN_STATISTICS
from engine.formats.vocabulary import Vocabulary
from train.clicks.batches import make_batch, training_batches
from train.clicks.calibration import EXAMINATION, read_examination
from train.clicks.data import ClickBatch, ClickRequests, read_requests
from train.clicks.feature_fit import features_of, fit_features
from train.clicks.fitting import fit_click_model
from train.clicks.losses import ChoiceLoss, ClickLoss
from train.clicks.model import ClickModel, load_click_model, save_click_model
from train.clicks.pretraining import session_requests
from train.clicks.reporting import ClickReport, click_reports
from train.clicks.scoring import click_logits
from train.clicks.token_statistics import count_tokens
from train.clicks.uncertainty import save_uncertainty
from train.clicks.unknown import unknown_requests
from train.mining.shown import check_clicks
from train.models.backbone import Shape, llama_config
from train.models.pace import PacedTrainer, last_checkpoint, trainer_arguments
from train.models.shared_prefix import PackedBatch
from train.settings import ClickModelConfig, MineConfig, Places

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Report = Callable[[str], None]


def train_click_model(
    run: Path,
    config: ClickModelConfig,
    *,
    shape: Shape,
    max_edges: int,
    seed: int,
    output: Path,
    raw_impressions: Places = "",
    mined_with: MineConfig | None = None,
    start: Path | None = None,
    report: Report = print,
) -> dict[str, ClickReport] | None:
    """Trains on `run`/mined/impressions.parquet and writes the click model into `output`.

    Besides the model: calibration.json (scenario -> slope, intercept), position.json (scenario
    -> p(seen | position)), uncertainty.safetensors, token_statistics.npz and metrics.json. A call
    that was interrupted goes on from its last checkpoint in `output`. Scenarios without held-out
    impressions keep slope 1, intercept 0.

    Args:
        run: run directory, mined.
        config: training.
        shape: of the backbone.
        max_edges: of the index, see `train.clicks.data.RequestReader`.
        seed: of weights and order.
        output: directory of the stage.
        raw_impressions: place of the log that was mined: texts below k are calibrated on its
            held-out rows (see `train.clicks.unknown`); empty: they are calibrated like others.
        mined_with: how that log was mined; None: with the defaults.
        start: older run directory with the same tokenizer, whose click model learns on from where
            it ended; None: sessions, features and clicks are learnt from nothing.
        report: called with how far the training is, and with what came of it.

    Returns:
        The reports per scenario that has held-out impressions, and of "all"; None if there are
        no impressions (then nothing is written: bundles serve without a click model).

    Raises:
        ValueError: no clicks or nothing but clicks in a split, a model that learned to say the
            same for everything, or one to start from that reads other ids, or none there.
    """
    older_curves = {} if start is None else _curves_of_start(start, run)
    vocabulary = Vocabulary.load(run / "tokenizer.json")
    statistics = count_tokens(run, vocabulary)
    requests = read_requests(
        run,
        max_edges=max_edges,
        statistics=statistics,
        max_requests=config.max_requests,
        report=report,
    )
    if requests is None:
        report("no impressions were mined: no click model")
        return None
    train = np.flatnonzero(~requests.is_valid_R)
    valid = np.flatnonzero(requests.is_valid_R)
    for name, chosen in (("train", train), ("valid", valid)):
        clicked = requests.clicked_N[requests.rows(chosen)]
        check_clicks(name, len(clicked), int(clicked.sum()))
    raw = None
    if raw_impressions:
        raw = unknown_requests(
            run,
            raw_impressions,
            max_edges=max_edges,
            settings=mined_with,
            statistics=statistics,
            seed=seed,
        )
    set_seed(seed)
    course = _Course(config, seed, output / "checkpoints", report)
    if start is None:
        model = ClickModel(LlamaModel(llama_config(shape, vocabulary.size)))
        model.head.text_dropout = config.hidden_text_share
        has_begun = course.has_checkpoint("clicks")
        if not has_begun:
            num_sessions = round(config.session_share * len(train))
            sessions = session_requests(run, statistics, num_requests=num_sessions, seed=seed)
            _read_sessions(course, model, sessions, requests, train)
            del sessions  # as large as the requests
        loss = ClickLoss(model, _num_positions(requests), [[] for _ in requests.scenarios])
        if not has_begun:
            fit_features(loss, requests, train, hidden_share=config.hidden_log_share, seed=seed)
    else:
        loss = _where_it_ended(start, older_curves, requests, config)
    model = loss.model
    trainer = course.train(
        loss,
        requests,
        train,
        "clicks",
        num_epochs=config.num_epochs,
        hidden_share=config.hidden_log_share,
    )
    model.eval()

    logits = click_logits(model, requests, valid)
    fit = fit_click_model(
        model, requests, logits, raw, hidden_share=config.hidden_log_share, seed=seed
    )
    reports = click_reports(requests, train, valid, logits, fit)
    for name, own in reports.items():
        report(own.describe(name))

    save_click_model(model, output)
    save_uncertainty(fit.uncertainty, output)
    statistics.save(output / TOKEN_STATISTICS)
    seen = {name: e.seen_P.tolist() for name, e in fit.examinations.items()}
    for file, content in (
        ("calibration.json", fit.calibrations),
        ("unknown_calibration.json", fit.unknown_calibrations),
        (Path(EXAMINATION).name, seen),
        ("metrics.json", reports),
    ):
        (output / file).write_bytes(msgspec.json.format(msgspec.json.encode(content)))
    if trainer.is_world_process_zero():
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return reports


@dataclass(frozen=True, slots=True)
class _Course:
    """Trainings of one click model, one after the other; an interrupted one goes on."""

    config: ClickModelConfig
    seed: int
    checkpoints: Path
    report: Report

    def has_checkpoint(self, name: str) -> bool:
        """Returns whether a training has begun and left one."""
        return last_checkpoint(self.checkpoints / name) is not None

    def train(
        self,
        module: nn.Module,
        requests: ClickRequests,
        chosen: Ids,
        name: str,
        *,
        num_epochs: float,
        hidden_share: float,
    ) -> PacedTrainer:
        """Trains on the chosen requests; sessions and clicks share the time there is."""
        config, seed = self.config, self.seed
        batches = training_batches(
            requests, chosen, num_epochs=num_epochs, batch_size=config.batch_size, seed=seed
        )

        def collator(parts: list[list[int]]) -> dict[str, Any]:
            numbers = list(chain.from_iterable(parts))
            batch = make_batch(requests, numbers, hidden_share=hidden_share, seed=seed)
            return {**batch._asdict(), "packed": batch.packed._asdict()}

        trainer = _BatchTrainer(
            model=module,
            args=trainer_arguments(
                self.checkpoints / name,
                batch_size=1,  # of batches that are made already
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                bf16=config.bf16,
                seed=seed,
            ),
            train_dataset=batches,
            data_collator=collator,
            max_train_s=config.max_train_s / (1 + (self.checkpoints / "sessions").is_dir()),
            warmup_share=0.05,
            matrix_learning_rate=config.matrix_learning_rate,
            report=self.report,
        )
        trainer.train_resumable()
        return trainer


def _read_sessions(
    course: _Course,
    model: ClickModel,
    sessions: ClickRequests | None,
    requests: ClickRequests,
    train: Ids,
) -> None:
    """Has the model read features as they are in `requests`, and learn from sessions if any."""
    config = course.config
    rows = requests.rows(train)
    model.standardise(features_of(requests, rows, config.hidden_log_share, course.seed))
    if sessions is not None:
        (course.checkpoints / "sessions").mkdir(parents=True, exist_ok=True)
        everyone = np.arange(len(sessions))
        loss = ChoiceLoss(model)
        course.train(loss, sessions, everyone, "sessions", num_epochs=1, hidden_share=0)


def _where_it_ended(
    start: Path,
    older_curves: dict[str, list[float]],
    requests: ClickRequests,
    config: ClickModelConfig,
) -> ClickLoss:
    """Returns the loss of an older run's model, with what that run found of examination."""
    model = load_click_model(start / "click_model").train()
    model.head.text_dropout = config.hidden_text_share
    curves = [older_curves.get(name, []) for name in requests.scenarios]
    return ClickLoss(model, _num_positions(requests), curves)


def _num_positions(requests: ClickRequests) -> int:
    return max(2, int(requests.position_N.max()) + 1)


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


def _curves_of_start(start: Path, run: Path) -> dict[str, list[float]]:
    """Returns how positions are seen in a run that can be started from."""
    curves = read_examination(start)
    one, other = ((d / "tokenizer.json").read_bytes() for d in (start, run))
    if one != other:
        raise ValueError(
            f"{start}: its click model reads the ids of another tokenizer than {run} has: start "
            "from a run with the same tokenizer.json, or from none"
        )
    return curves
