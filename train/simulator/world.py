"""Makes, saves and loads the frozen truth of a simulated world; it knows no session or policy.

A world is three files in its directory, enough to score any string anywhere with equal results:
`world.json` (parameters and fingerprints), `world.npz` (word space, drawn arrays, fitted weights)
and `world_text.txt.gz` (the real queries that the word bigram counts; none occurs in the log).
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.simulator import corpus, intents, text, vectors, wellformed
from train.simulator.clicks import ClickModel
from train.simulator.corpus import Corpus
from train.simulator.truth import FORMULA_VERSION, SCENARIOS, Truth

JSON_NAME, ARRAYS_NAME, TEXT_NAME = "world.json", "world.npz", "world_text.txt.gz"
_CALIBRATION_SHARE = 0.1  # of hidden queries: they fit well-formedness and are in no count


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldRecord:
    """What `world.json` states."""

    is_simulated: bool
    seed: int
    click_model: ClickModel
    num_logged_queries: int
    formula_version: int
    fingerprint: str
    definition_sha256: str
    queries_sha256: str  # of the query file's text
    heldout_sha256: str  # of the held-out file's bytes
    probe: list[float]  # scores of fixed lists: formulas that changed since are found by them


class World(NamedTuple):
    """A truth and the queries that its users type."""

    truth: Truth
    corpus: Corpus
    counted: list[str]  # queries behind the word bigram


def make(
    queries_path: Path,
    heldout_path: Path,
    *,
    num_logged_queries: int,
    seed: int,
    click_model: ClickModel,
) -> World:
    """Draws a world from real queries, in about 10 s for 200,000 of them.

    Raises:
        ValueError: if a file is missing, lacks a column or holds too few queries.
    """
    heldout = corpus.read_heldout(heldout_path)
    split = corpus.read(queries_path, heldout=heldout, num_logged=num_logged_queries, seed=seed)
    rng = np.random.default_rng([seed, 5])
    calibrates = rng.random(len(split.hidden)) < _CALIBRATION_SHARE
    counted = [q for q, is_kept in zip(split.hidden, ~calibrates, strict=True) if is_kept]
    real = [q for q, is_real in zip(split.hidden, calibrates, strict=True) if is_real]
    space = vectors.learn(counted, seed=seed)
    if not space.stems or not real:
        raise ValueError(
            f"{queries_path} leaves {len(counted)} queries to the truth after {num_logged_queries} "
            f"for the log: too few to know which words belong together, ask for fewer in the log"
        )
    word_counts = len(counted) / np.exp(space.idf[:-1])
    drawn = intents.draw(space, word_counts, seed=seed)
    model = wellformed.BigramModel(counted)
    judge = wellformed.learn(model, space, drawn.id_of, real, seed=seed)
    digest = _definition_sha256(_arrays(drawn, judge), counted)
    return World(Truth(drawn, judge, seed, click_model, digest), split, counted)


def save(world: World, out_dir: Path, *, heldout_path: Path) -> WorldRecord:
    """Writes the world's three files and returns what `world.json` states."""
    truth = world.truth
    record = WorldRecord(
        is_simulated=True,
        seed=truth.seed,
        click_model=truth.click_model,
        num_logged_queries=len(world.corpus.logged),
        formula_version=FORMULA_VERSION,
        fingerprint=truth.fingerprint(),
        definition_sha256=truth.definition_sha256,
        queries_sha256=world.corpus.source_sha256,
        heldout_sha256=hashlib.sha256(heldout_path.read_bytes()).hexdigest(),
        probe=_probe(truth, world.counted),
    )
    np.savez_compressed(
        out_dir / ARRAYS_NAME, allow_pickle=False, **_arrays(truth.intents, truth.wellformed)
    )
    joined = "\n".join(world.counted).encode("utf-8")
    (out_dir / TEXT_NAME).write_bytes(gzip.compress(joined, compresslevel=6, mtime=0))
    stated = json.dumps(dataclasses.asdict(record), indent=2, sort_keys=True)
    (out_dir / JSON_NAME).write_text(stated + "\n", encoding="utf-8")
    return record


def read_record(out_dir: Path) -> WorldRecord:
    """Reads `world.json`.

    Raises:
        ValueError: if it is missing, unreadable or lacks a field.
    """
    path = Path(out_dir) / JSON_NAME
    if not path.is_file():
        raise ValueError(f"{out_dir} holds no {JSON_NAME}: it is not the output of a simulation")
    try:
        return WorldRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a world record: {error}") from error


def load(out_dir: Path) -> Truth:
    """Loads a saved truth and checks it against its fingerprint.

    Raises:
        ValueError: if a file is missing, or the world is not the one that was frozen.
    """
    out_dir = Path(out_dir)
    record = read_record(out_dir)
    for name in (ARRAYS_NAME, TEXT_NAME):
        if not (out_dir / name).is_file():
            raise ValueError(f"{out_dir} lacks {name}: the truth cannot be loaded without it")
    with np.load(out_dir / ARRAYS_NAME, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    counted = gzip.decompress((out_dir / TEXT_NAME).read_bytes()).decode("utf-8").split("\n")
    digest = _definition_sha256(arrays, counted)
    stems = arrays["stems"].tolist()
    space = vectors.WordSpace(
        stems, arrays["idf"], arrays["vectors"], arrays["pair_keys"], arrays["pair_ppmi"]
    )
    id_of = {stem: index for index, stem in enumerate(stems)}
    drawn = intents.Intents(
        space, id_of, arrays["rotation"], arrays["appeal"], arrays["move_weights"]
    )
    centre, scale = arrays["wellformed_range"].tolist()
    judge = wellformed.WellFormedness(
        wellformed.BigramModel(counted), space, id_of, arrays["wellformed_weights"], centre, scale
    )
    truth = Truth(drawn, judge, record.seed, record.click_model, digest)
    if truth.fingerprint() != record.fingerprint:
        raise ValueError(
            f"the world in {out_dir} has fingerprint {truth.fingerprint()[:16]}..., but "
            f"{JSON_NAME} says {record.fingerprint[:16]}...: a file or the simulator's formulas "
            f"changed since it was frozen; simulate again"
        )
    probe = _probe(truth, counted)
    if len(probe) != len(record.probe) or not np.allclose(
        probe, record.probe, rtol=1e-4, atol=1e-6
    ):
        raise ValueError(
            f"the simulator's formulas changed since the world in {out_dir} was frozen: it scores "
            f"its own probe differently; simulate again"
        )
    return truth


def _probe(truth: Truth, counted: list[str]) -> list[float]:
    """Returns P(click) in 36 lists: 12 queries in each scenario, with prefixes and sessions."""
    some = counted[:: max(1, len(counted) // 48)][:48]
    values: list[float] = []
    for scenario in SCENARIOS:
        for index in range(0, len(some), 4):
            query = some[index]
            asked = query[: max(1, len(query) // 2)] if scenario == "completion" else query
            ending = " ".join(query.split()[1:])
            listing = [*some[index : index + 4], f"{query} online", f"cheap {query}", ending]
            clicked = truth.click_probabilities(
                scenario,
                asked,
                listing,
                session_queries=some[:1],
                auxiliary_text=f"which {query} do you mean?",
            )
            values += [round(float(value), 9) for value in clicked]
    return values


def _arrays(drawn: intents.Intents, judge: wellformed.WellFormedness) -> dict[str, np.ndarray]:
    space = drawn.space
    return {
        "stems": np.array(space.stems),
        "idf": space.idf,
        "vectors": space.vectors,
        "pair_keys": space.pair_keys,
        "pair_ppmi": space.pair_ppmi,
        "rotation": drawn.rotation,
        "appeal": drawn.appeal,
        "move_weights": drawn.move_weights,
        "wellformed_weights": judge.weights,
        "wellformed_range": np.array([judge.centre, judge.scale]),
    }


def _definition_sha256(arrays: dict[str, np.ndarray], counted: list[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    digest.update("\n".join(counted).encode("utf-8"))
    digest.update(" ".join(sorted(text.FUNCTION_WORDS)).encode())
    return digest.hexdigest()
