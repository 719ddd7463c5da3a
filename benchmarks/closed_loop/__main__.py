"""`python -m benchmarks.closed_loop`; see the package."""

import argparse
import asyncio
import gzip
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.closed_loop.traffic import ask, report
from benchmarks.closed_loop.training import export, learn, write_feedback
from benchmarks.closed_loop.users import Asked, Users
from benchmarks.served import Served, point, served
from engine.formats.manifest import read_manifest
from queryrec.client import QueryRecClient
from train.config import TrainConfig, read_config
from train.evaluation.intervals import Floats, mean_interval, ratio_interval
from train.report.closed_loop import ClosedLoop, ListWorth, LoopRound, write_rounds

NUM_PLACES = 5
_EXPLORATION = "QUERYREC_RANKING_EXPLORATION_RATE"
_SWAP_TIMEOUT_S = 60.0


class Loop:
    """Rounds of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Draws the questions that every bundle is asked."""
        self._arguments = arguments
        self._config = _shortened(
            read_config(arguments.run / "config.toml"), arguments.click_s, arguments.prompts
        )
        simulated = arguments.run / "simulated"
        self._searches = simulated / "searches.parquet"
        self._impressions = simulated / "impressions.parquet"
        self._users = Users(simulated, self._config.simulate, seed=self._config.seed)
        with gzip.open(self._config.simulate.heldout, "rt", encoding="utf-8") as lines:
            unseen = sorted({line.strip() for line in lines} - {""})
        num, seed = arguments.questions, arguments.seed
        self._measured = {
            "sessions": self._users.questions(3 * num, seed=seed + 1000),
            "unseen": self._users.unseen(unseen, num, seed=seed + 1001),
        }
        self._first: dict[str, np.ndarray] = {}

    def run(self) -> list[LoopRound]:
        """Returns the rounds, which are written as they come; one engine has all the users."""
        arguments = self._arguments
        run, out = arguments.run, arguments.out
        out.mkdir(parents=True)
        link, feedback = out / "current", out / "feedback"
        link.symlink_to((run / "bundle").resolve())
        written = out / "rounds.json"
        settings = {
            "QUERYREC_FEEDBACK_DIRECTORY": str(feedback),
            _EXPLORATION: str(arguments.exploration),
        }
        with served(link, settings) as engine:
            rounds = [asyncio.run(self._measure(run / "bundle", 0))]
            write_rounds(rounds, written)
            for number in range(1, arguments.rounds + 1):
                num_clicks = asyncio.run(self._traffic(engine, number))
                table = out / f"feedback_{number}.parquet"
                write_feedback(feedback, self._searches, table, seed=arguments.seed)
                before, run = run, out / f"run_{number}"
                learn(
                    before,
                    run,
                    self._config,
                    searches=self._searches,
                    impressions=[self._impressions, table],
                    round_number=number,
                )
                export(run, run / "bundle")
                point(link, run / "bundle")
                engine.reload()
                asyncio.run(self._swapped(engine, run / "bundle"))
                rounds.append(asyncio.run(self._measure(run / "bundle", number, num_clicks)))
                write_rounds(rounds, written)
        return rounds

    async def _traffic(self, engine: Served, number: int) -> int:
        """Has users ask and click; returns the number of clicks."""
        arguments = self._arguments
        questions = self._users.questions(arguments.requests, seed=arguments.seed + number)
        async with QueryRecClient(engine.target) as client:
            answers = await ask(client, questions)
            clicked = self._users.clicks([a for a, _ in answers], seed=arguments.seed + number)
            await report(client, [r for _, r in answers], clicked)
        return sum(map(sum, clicked))

    async def _swapped(self, engine: Served, bundle: Path) -> None:
        """Waits until an engine answers with a bundle."""
        async with QueryRecClient(engine.target) as client:
            bundle_id = read_manifest(bundle).bundle_id
            await _served_by(client, bundle_id, self._measured["unseen"][0])

    async def _measure(self, bundle: Path, number: int, num_clicks: int = 0) -> LoopRound:
        """Returns what the lists of a bundle are worth as ranked, without exploration."""
        worth: dict[str, ListWorth] = {}
        with served(bundle, {_EXPLORATION: "0"}) as engine:
            async with QueryRecClient(engine.target) as client:
                for name, questions in self._measured.items():
                    answers = [
                        a._replace(texts=a.texts[:NUM_PLACES])
                        for a, _ in await ask(client, questions)
                    ]
                    rate_R = self._users.click_rates(answers, NUM_PLACES)
                    first_R = self._first.setdefault(name, rate_R)
                    worth[name] = worth_of(questions, rate_R, first_R)
        measured = LoopRound(
            number=number,
            bundle_id=read_manifest(bundle).bundle_id,
            num_requests=self._arguments.requests if number else 0,
            num_clicks=num_clicks,
            sessions=worth["sessions"],
            unseen=worth["unseen"],
        )
        print(msgspec.json.encode(measured).decode(), file=sys.stderr, flush=True)
        return measured


def worth_of(questions: Sequence[Asked], rate_R: Floats, first_R: Floats) -> ListWorth:
    """Returns the mean click rate of lists and its ratio to the first bundle's.

    Args:
        questions: What the R lists answer; those of one unit are resampled together.
        rate_R: The true P(click) of a place.
        first_R: The same of the first bundle.
    """
    unit_R = [asked.unit for asked in questions]
    return ListWorth(
        true_ctr=mean_interval(rate_R, cluster_U=unit_R),
        gain=ratio_interval(rate_R, first_R, cluster_U=unit_R),
    )


def _shortened(config: TrainConfig, click_s: float, num_prompts: int) -> TrainConfig:
    replace = msgspec.structs.replace
    click_model, alignment = config.click_model, config.alignment
    if click_s:
        click_model = replace(click_model, max_train_s=click_s)
    if num_prompts:
        alignment = replace(alignment, num_rounds=1, num_prompts=num_prompts)
    return replace(config, click_model=click_model, alignment=alignment)


async def _served_by(client: QueryRecClient, bundle_id: str, asked: Asked) -> None:
    """Waits until a bundle answers.

    Raises:
        ValueError: it does not within a minute.
    """
    give_up_s = time.monotonic() + _SWAP_TIMEOUT_S
    while True:
        ((_, answer),) = await ask(client, [asked])
        if answer.bundle_id == bundle_id:
            return
        if time.monotonic() > give_up_s:
            raise ValueError(f"the engine still answers with {answer.bundle_id}, not {bundle_id}")
        await asyncio.sleep(0.2)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the arguments; exits with status 2 if they are nonsense."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.closed_loop", description="Rounds of serving and learning."
    )
    parser.add_argument("--run", type=Path, required=True, help="run on simulated logs, exported")
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--requests", type=int, default=20_000, help="of users a round (20000)")
    parser.add_argument("--questions", type=int, default=300, help="unseen queries (300)")
    parser.add_argument("--exploration", type=float, default=0.1, help="share of requests (0.1)")
    parser.add_argument(
        "--click-s", type=float, default=0, help="seconds that a click model learns on (as the run)"
    )
    parser.add_argument(
        "--prompts", type=int, default=0, help="of an alignment, one round (as the run)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of questions and clicks (0)")
    args = parser.parse_args(arguments)
    if min(args.rounds, args.requests, args.questions) < 1:
        parser.error("--rounds, --requests and --questions must be at least 1")
    if args.out.exists():
        parser.error(
            f'--out {args.out} exists; name another directory (make closed-loop LOOP="--out DIR")'
        )
    return args


def main() -> int:
    arguments = parse()
    try:
        rounds = Loop(arguments).run()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(msgspec.json.encode(ClosedLoop(is_simulated=True, rounds=rounds)).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
