"""Runs the stages of a training run: each once, whole or not at all, again when something changed.

A stage writes into OUTPUT.partial, which is renamed when it is done, so an interrupted stage
never looks finished; what it left is kept, so that it can go on. What it may keep in
OUTPUT.partial.scratch is not. Beside the outputs, `.stages` holds a record per finished stage with
a fingerprint of its settings and of the stages it builds on. Knows nothing of what stages do.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

_RECORDS = ".stages"
_CHECKPOINTS = "checkpoints"  # inside a partial output: what only resuming needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a run."""

    name: str
    output: str  # file or directory, relative to the run
    needs: Sequence[str]  # stages whose outputs it reads
    settings: object  # what it depends on beside those; anything that JSON can hold
    # Makes the output at the path given and returns a line for people. A directory that it leaves
    # empty says that there is nothing to make.
    make: Callable[[Path], str]
    is_file: bool = False
    is_shared: bool = False  # several processes that torchrun started may make it together


def scratch_of(output: Path) -> Path:
    """Returns where what is made at a path keeps what goes when it is done or was given up."""
    return output.with_name(output.name + ".scratch")


def is_first_process() -> bool:
    """Returns whether no other process of the same torchrun goes before this one."""
    return os.environ.get("RANK", "0") == "0"


class StageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished stage."""

    fingerprint: str
    finished_at_ns: int
    took_s: float
    summary: str
    has_output: bool = True  # there may have been nothing to make
    needs: dict[str, int] = {}  # stages whose outputs it read, and when these were finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What running a stage came to."""

    was_skipped: bool
    took_s: float
    summary: str


def records_of(run: Path) -> dict[str, bytes]:
    """Returns what is noted of each stage that is finished: other bytes once it ran again."""
    return {path.stem: path.read_bytes() for path in (run / _RECORDS).glob("*.json")}


def check_whole(run: Path) -> None:
    """Checks that all that a run directory holds was made to its end, and from one another.

    What it was made from outside, such as log files, may have changed since.

    Raises:
        ValueError: a stage was never finished, or builds on what another has replaced since.
    """
    records = {p.stem: _read_record(p) for p in (run / _RECORDS).glob("*.json")}
    found = {name: record for name, record in records.items() if record is not None}
    again = f"run `queryrec-train run --run {run}` with its settings to the end"
    for path in sorted((run / _RECORDS).glob("*.started")):
        if path.stem not in found:
            raise ValueError(f"{run}: stage {path.stem} was begun and not finished; {again}")
    for name, record in sorted(found.items()):
        for needed, finished_at_ns in record.needs.items():
            if needed not in found or found[needed].finished_at_ns != finished_at_ns:
                raise ValueError(
                    f"{run}: stage {name} was made from what stage {needed} has replaced since; "
                    f"{again}"
                )


def _read_record(path: Path) -> StageRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=StageRecord)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


class StageRunner:
    """Runs stages in one run directory."""

    def __init__(self, run: Path, stages: Sequence[Stage]) -> None:
        """Takes the directory, which need not exist, and all stages in their order."""
        self._run = run
        self._stages = {s.name: s for s in stages}

    @property
    def names(self) -> list[str]:
        """Returns the names of all stages in their order."""
        return list(self._stages)

    def is_done(self, name: str) -> bool:
        """Returns whether a stage and all that it builds on are finished, as presently set."""
        return all(self._is_up_to_date(n) for n in (*self._upstream(name), name))

    def check(self, name: str) -> None:
        """Checks that what a stage builds on is there.

        Raises:
            ValueError: naming the stage to run first.
        """
        for needed in self._upstream(name):
            if not self._is_up_to_date(needed):
                has_run = self._record(needed) is not None
                why = "was run with other settings or inputs, or lost" if has_run else "has not run"
                raise ValueError(
                    f"stage {name} needs stage {needed}, which {why} in {self._run}: run "
                    f"`queryrec-train {needed}` first, or `queryrec-train run` for all stages"
                )

    def run(self, name: str, *, force: bool = False) -> Outcome:
        """Runs a stage unless it is done.

        Args:
            name: of the stage.
            force: runs it again, from its beginning, even if it is done.

        Raises:
            ValueError: what it builds on is missing, its input is wrong, another process works on
                this run, or several were started for what one does alone. Nothing of the stage is
                left behind but checkpoints, from which the same command goes on.
        """
        stage = self._stages[name]
        self.check(name)
        record = self._record(name)
        if record is not None and self.is_done(name) and not force:
            return Outcome(was_skipped=True, took_s=record.took_s, summary=record.summary)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not stage.is_shared:
            shared = [s.name for s in self._stages.values() if s.is_shared]
            raise ValueError(
                f"stage {name} is made by one process: start it without torchrun, which is for "
                f"{', '.join(shared)}"
            )
        if not is_first_process():  # the first one keeps records, and waits for the others
            return Outcome(was_skipped=False, took_s=0, summary=stage.make(self._partial(stage)))
        existed = self._run.exists()
        try:
            with self._locked():
                return self._made(stage, force)
        finally:
            if not existed:
                _remove_empty(self._run)

    def _made(self, stage: Stage, force: bool) -> Outcome:
        partial, started = self._partial(stage), self._started(stage.name)
        fingerprint = self._fingerprint(stage.name)
        if force or not started.exists() or started.read_text() != fingerprint:
            self._discard(partial)
        started.write_text(fingerprint)
        if not stage.is_file:
            partial.mkdir(parents=True, exist_ok=True)
        begun_s = time.monotonic()
        try:
            summary = stage.make(partial)
        except ValueError:
            if not any((partial / _CHECKPOINTS).glob("*")):  # nothing was learnt so far
                self._discard(partial)
                started.unlink()
            raise
        took_s = round(time.monotonic() - begun_s, 2)
        record_path = self._record_path(stage.name)
        record_path.unlink(missing_ok=True)  # from here until the end, the stage is not done
        output = self._run / stage.output
        self._discard(output)
        if not stage.is_file:
            self._discard(partial / _CHECKPOINTS)
        has_output = stage.is_file or any(partial.iterdir())
        if has_output:
            partial.rename(output)
        else:
            partial.rmdir()
        record = StageRecord(
            fingerprint=fingerprint,
            finished_at_ns=time.time_ns(),
            took_s=took_s,
            summary=summary,
            has_output=has_output,
            needs={n: r.finished_at_ns for n in stage.needs if (r := self._record(n)) is not None},
        )
        written = record_path.with_suffix(".partial")
        written.write_bytes(msgspec.json.encode(record))
        written.rename(record_path)
        started.unlink()
        return Outcome(was_skipped=False, took_s=took_s, summary=summary)

    def _upstream(self, name: str) -> list[str]:
        """Returns the stages that a stage builds on, directly or not, in their order."""
        needed: set[str] = set()
        waiting = [*self._stages[name].needs]
        while waiting:
            if (one := waiting.pop()) not in needed:
                needed.add(one)
                waiting += self._stages[one].needs
        return [n for n in self._stages if n in needed]

    def _is_up_to_date(self, name: str) -> bool:
        """Returns whether a stage was made with its settings, from what is there, and is there."""
        record = self._record(name)
        if record is None or record.fingerprint != self._fingerprint(name):
            return False
        return not record.has_output or (self._run / self._stages[name].output).exists()

    def _fingerprint(self, name: str) -> str:
        stage = self._stages[name]
        upstream = []
        for needed in stage.needs:
            record = self._record(needed)
            upstream.append((record.fingerprint, record.finished_at_ns) if record else None)
        content = msgspec.json.encode([stage.settings, upstream], order="sorted")
        return hashlib.sha256(content).hexdigest()

    def _record(self, name: str) -> StageRecord | None:
        return _read_record(self._record_path(name))

    def _record_path(self, name: str) -> Path:
        return self._run / _RECORDS / f"{name}.json"

    def _started(self, name: str) -> Path:
        return self._run / _RECORDS / f"{name}.started"

    def _partial(self, stage: Stage) -> Path:
        return self._run / f"{stage.output}.partial"

    def _discard(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        records = self._run / _RECORDS
        try:
            records.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self._run}: cannot be written ({error.strerror})") from None
        path = records / "lock"
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self._run}: another queryrec-train works here; wait for it or use "
                    "another --run"
                ) from None
            for stage in self._stages.values():  # of a process that was killed
                self._discard(scratch_of(self._partial(stage)))
            yield


def _remove_empty(run: Path) -> None:
    """Removes a run directory that holds nothing but the lock."""
    lock = run / _RECORDS / "lock"
    if (
        lock.exists()
        and [*run.iterdir()] == [run / _RECORDS]
        and [*lock.parent.iterdir()] == [lock]
    ):
        lock.unlink()
        lock.parent.rmdir()
        run.rmdir()
