"""Rounds of serving, clicks and learning: what became of each, as `report.json` holds it.

Made by `python -m benchmarks.closed_loop`. Knows nothing of engines.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from train.evaluation.intervals import Interval


class ListWorth(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle's answers to fixed questions are worth.

    Attributes:
        true_ctr: mean true P(click) of a place in the list.
        gain: of `true_ctr` over that of the first bundle, same questions.
    """

    true_ctr: Interval
    gain: Interval


class LoopRound(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle of the loop.

    Attributes:
        number: 0 for the bundle that answered first.
        bundle_id: of the bundle.
        num_requests: answered by the bundle before, from which this one learnt.
        num_clicks: on these answers.
        sessions: questions of fresh sessions.
        unseen: queries that no log holds.
    """

    number: int
    bundle_id: str
    num_requests: int
    num_clicks: int
    sessions: ListWorth
    unseen: ListWorth


class ClosedLoop(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds so far."""

    is_simulated: bool
    rounds: list[LoopRound]


def write_rounds(rounds: Sequence[LoopRound], path: Path) -> None:
    """Writes what `read_rounds` reads."""
    loop = ClosedLoop(is_simulated=True, rounds=list(rounds))
    path.write_bytes(msgspec.json.format(msgspec.json.encode(loop)))


def read_rounds(path: Path) -> list[LoopRound]:
    """Returns the rounds of a closed loop.

    Raises:
        ValueError: the file is not there, or is not one of `write_rounds`.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ClosedLoop).rounds
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(
            f"{path}: no rounds of a closed loop ({error}); `make closed-loop` writes rounds.json"
        ) from None
