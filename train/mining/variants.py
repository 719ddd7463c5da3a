"""Near-duplicates: queries that say the same in another form become the most searched form.

Knows nothing of sessions or impressions.
"""

from collections.abc import Iterable, Iterator

import ibis
import pyarrow as pa

from engine.formats.text import match_key
from train.mining.logs import Table
from train.mining.workspace import Workspace

_KEY_SCHEMA = pa.schema({"text": pa.string(), "key": pa.string()})


def variant_key(text: str, *, is_bag: bool) -> str:
    """Returns the key that near-duplicates share: letters and digits only, as when serving.

    Args:
        text: normalised.
        is_bag: whether order and English plurals do not count either (Harman's S stemmer, 1991).
    """
    key = match_key(text)
    return " ".join(sorted(map(_singular, key.split()))) if is_bag else key


def canonical_texts(counts: Table, workspace: Workspace, *, min_users: int, is_bag: bool) -> Table:
    """Returns what near-duplicates become: text, canonical (another text).

    The canonical text is the most searched one of those that are k-anonymous by themselves, so
    that merging publishes nothing that would not be published anyway.

    Args:
        counts: text, num_searches, num_users.
        workspace: runs expressions.
        min_users: k.
        is_bag: see `variant_key`.
    """

    def keyed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            keys = [variant_key(text, is_bag=is_bag) for text in batch["text"].to_pylist()]
            yield pa.RecordBatch.from_arrays(
                [batch["text"], pa.array(keys, pa.string())], schema=_KEY_SCHEMA
            )

    keys = workspace.map("keys", counts.select("text"), _KEY_SCHEMA, keyed)
    public = counts.filter(counts.num_users >= min_users).inner_join(keys, "text")
    best_first = [ibis.desc("num_searches"), "text"]
    ranked = public.mutate(
        rank=ibis.row_number().over(ibis.window(group_by="key", order_by=best_first))
    )
    best = ranked.filter(ranked["rank"] == 0).select("key", canonical="text")
    variants = keys.inner_join(best, "key")
    variants = variants.filter(variants.text != variants.canonical).select("text", "canonical")
    return workspace.keep("canonical", variants)


def replaced(table: Table, canonical: Table) -> Table:
    """Returns the table with the texts of its column `text` made canonical."""
    known = canonical.select(variant="text", canonical="canonical")
    joined = table.left_join(known, table.text == known.variant)
    text = ibis.coalesce(joined.canonical, joined.text)
    return joined.mutate(text=text).select(*table.columns)


def _singular(word: str) -> str:
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word
