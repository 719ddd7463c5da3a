"""Candidates: texts from the log and from the generator, merged into one list without repeats.

Knows nothing of how they are scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

from engine.execution.models import Floats, Sequences
from engine.execution.retrieval import Retrieval
from engine.feedback.attribution import Source
from engine.formats.completion import HealedPrefix, completed
from engine.formats.text import MAX_QUERY_BYTES, has_control_characters, match_key, normalise
from engine.formats.vocabulary import SEP_ID, Vocabulary


@dataclass(slots=True)
class Candidate:
    """A text that might be suggested."""

    text: str  # normalised
    key: str  # two candidates with the same key are the same suggestion
    source: Source
    popularity: float = 0.0  # searches in the log
    npmi: float = 0.0  # association with the query
    # Among the texts that the generator wrote, from 0, as they were written: further searches for
    # the same request come after the first, cut texts last. Set by `gathered`.
    place: int | None = None
    # Of the generator, for the request's query; None if it did not write the text to its end, or
    # did so in a further search or without saying how probable it is.
    logprob: float | None = None
    ids: Sequence[int] | None = None  # set by `engine.answering.scoring`
    features_F: Floats | None = None  # set by `engine.answering.scoring`


class WrittenTexts(NamedTuple):
    """What the generator wrote for one request, best first."""

    finished: list[Candidate]
    cut: list[Candidate]  # reached their limit: the last word may be a stump
    auxiliary: Candidate | None

    def joined(self, other: "WrittenTexts") -> "WrittenTexts":
        """Returns these texts, then the other's, of another prompt; the auxiliary text stays."""
        for candidate in (*other.finished, *other.cut):
            candidate.logprob = None
        return self._replace(finished=self.finished + other.finished, cut=self.cut + other.cut)


NO_TEXTS = WrittenTexts([], [], None)


@lru_cache(65_536)
def key_of(text: str) -> str:
    """Returns `match_key(text)`, faster for texts seen lately."""
    return match_key(text)


def written_texts(
    vocabulary: Vocabulary,
    sequences: Sequences | None,
    *,
    is_list: bool,
    has_auxiliary_text: bool,
    healed: HealedPrefix | None,
) -> WrittenTexts:
    """Returns what generated sequences say; texts that no response may hold are left out.

    Args:
        vocabulary: Turns ids into text.
        sequences: Of one request; None if nothing was generated.
        is_list: Whether one sequence holds all texts, <|sep|> between them.
        has_auxiliary_text: Whether the first text is the auxiliary one.
        healed: What every text completes, if anything.
    """
    if sequences is None:
        return NO_TEXTS
    logprobs = sequences.logprobs or [None] * len(sequences.ids)
    pieces = list(zip(sequences.ids, sequences.is_finished, logprobs, strict=True))
    if is_list:
        pieces = _split_list(sequences.ids[0], sequences.is_finished[0])
    auxiliary = None
    if has_auxiliary_text and pieces:
        ids, is_finished, _ = pieces.pop(0)
        auxiliary = _candidate(vocabulary.decode(ids)) if is_finished else None
    finished: list[Candidate] = []
    cut: list[Candidate] = []
    prefix = vocabulary.bytes_of(healed.kept_ids) + healed.remainder if healed else b""
    for ids, is_finished, logprob in pieces:
        if SEP_ID in ids:  # in a slot: the first text stands for the slot
            ids, is_finished = ids[: ids.index(SEP_ID)], True
        text = completed(vocabulary, healed, ids) if healed else vocabulary.decode(ids)
        # What was cut is a beginning: as probable as all its endings together.
        candidate = _candidate(text, logprob if is_finished else None)
        if candidate is not None and (" " + candidate.text).encode("utf-8").startswith(prefix):
            (finished if is_finished else cut).append(candidate)
    return WrittenTexts(finished, cut, auxiliary)


def merged(
    generated: Sequence[Candidate],
    log: Sequence[Candidate],
    *,
    excluded_keys: frozenset[str],
    is_blocked: Callable[[str], bool],
    limit: int,
) -> list[Candidate]:
    """Returns at most `limit` distinct candidates, generated and log ones taking turns.

    That order is the prior: it stands where nothing scores the candidates, but for completions
    (see `engine.answering.ranking`). A text from both
    sources keeps the better place, and the log's wording and figures.

    Args:
        generated: Best first.
        log: Best first.
        excluded_keys: Keys that must not appear, the query's own included.
        is_blocked: Whether a text is unsafe.
        limit: Most candidates wanted.
    """
    by_key: dict[str, Candidate] = {}
    log_by_key = {c.key: c for c in reversed(log)}
    written_by_key = {c.key: c for c in reversed(generated)}
    for pair in zip_longest(generated, log):
        for candidate in pair:
            if candidate is None or candidate.key in by_key or candidate.key in excluded_keys:
                continue
            chosen = log_by_key.get(candidate.key, candidate)
            if is_blocked(chosen.text):
                continue
            written = written_by_key.get(candidate.key)
            if chosen.source is Source.LOG and written is not None:
                chosen.source = Source.LOG | Source.GENERATED
                chosen.place, chosen.logprob = written.place, written.logprob
            by_key[candidate.key] = chosen
            if len(by_key) == limit:
                return list(by_key.values())
    return list(by_key.values())


def gathered(
    texts: WrittenTexts,
    log: Sequence[Candidate],
    *,
    excluded_keys: frozenset[str],
    is_blocked: Callable[[str], bool],
    num_wanted: int,
    limit: int,
) -> list[Candidate]:
    """Returns `merged` finished texts and log; cut ones only where these are fewer than wanted."""
    for place, candidate in enumerate([*texts.finished, *texts.cut]):
        candidate.place = place
    candidates = merged(
        texts.finished, log, excluded_keys=excluded_keys, is_blocked=is_blocked, limit=limit
    )
    if len(candidates) < num_wanted and texts.cut:
        candidates += merged(
            texts.cut,
            (),
            excluded_keys=excluded_keys | {c.key for c in candidates},
            is_blocked=is_blocked,
            limit=num_wanted - len(candidates),
        )
    return candidates


def set_figures(query: str, candidates: Sequence[Candidate], retrieval: Retrieval) -> None:
    """Sets popularity and NPMI of texts made of parts or generated, where the log knows them."""
    new = [c for c in candidates if c.popularity == 0]
    if new:
        popularity, npmi = retrieval.known(query, [c.text for c in new])
        for candidate, count, association in zip(new, popularity, npmi, strict=True):
            candidate.popularity, candidate.npmi = count, association


def _candidate(decoded: str | None, logprob: float | None = None) -> Candidate | None:
    """Returns a candidate for a decoded text; None if no response may hold it."""
    text = normalise(decoded) if decoded is not None else ""
    if not text or len(text.encode("utf-8")) > MAX_QUERY_BYTES:
        return None
    if not text.isprintable() and has_control_characters(text):
        return None
    return Candidate(text, key_of(text), Source.GENERATED, logprob=logprob)


def _split_list(ids: list[int], is_finished: bool) -> list[tuple[list[int], bool, None]]:
    """Returns the texts of one list sequence; only the last can be cut at the limit."""
    texts: list[list[int]] = [[]]
    for token in ids:
        if token == SEP_ID:
            texts.append([])
        else:
            texts[-1].append(token)
    return [(t, is_finished or i < len(texts) - 1, None) for i, t in enumerate(texts)]
