"""Co-occurrence in sessions: pairs of queries, how strongly they belong together, and contexts.

Knows nothing of impressions.
"""

import ibis

from train.mining.logs import Table
from train.mining.sessions import ORDER
from train.settings import MineConfig


def all_pairs(steps: Table, max_steps: int) -> Table:
    """Returns ordered pairs of different queries at most `max_steps` apart, one row each.

    Args:
        steps: see `sessions.steps`.
        max_steps: at least 1.

    Returns:
        user, is_valid (of the earlier query), source, target.
    """
    order = ibis.window(group_by="session", order_by=ORDER)
    following = steps.select(
        "user",
        "is_valid",
        source="text",
        targets=ibis.array([steps.text.lead(d).over(order) for d in range(1, max_steps + 1)]),
    )
    pairs = following.unnest("targets", keep_empty=False)
    pairs = pairs.rename(target="targets")
    return pairs.filter(pairs.target.notnull() & (pairs.source != pairs.target))


def anonymous_pairs(pairs: Table, public: Table, min_users: int) -> Table:
    """Returns the pairs (source, target) with k users on the pair and on both of its ends."""
    # Most pairs have a private end: they go first, counting distinct users takes memory.
    known = pairs.semi_join(public, [("source", "text")]).semi_join(public, [("target", "text")])
    counted = known.group_by("source", "target").agg(num_users=known.user.nunique())
    return counted.filter(counted.num_users >= min_users).select("source", "target")


def associated_pairs(pairs: Table, anonymous: Table, settings: MineConfig) -> Table:
    """Returns pairs and how strongly their queries belong together, from training time only.

    Returns:
        source, target, num_pairs, num_users, association (see `npmi` and `llr`).
    """
    pairs = pairs.filter(~pairs.is_valid)
    known = pairs.semi_join(anonymous, ["source", "target"])
    both = known.group_by("source", "target").agg(
        num_pairs=known.count(), num_users=known.user.nunique()
    )
    sources = pairs.group_by("source").agg(num_source=pairs.count())
    targets = pairs.group_by("target").agg(num_target=pairs.count())
    total = pairs.agg(total=pairs.count())
    kept = both.filter(
        (both.num_users >= settings.min_users) & (both.num_pairs >= settings.min_pairs)
    )
    joined = kept.inner_join(sources, "source").inner_join(targets, "target").cross_join(total)
    # Products of counts outgrow 64-bit integers.
    counts = [
        joined[name].cast("float64") for name in ("num_pairs", "num_source", "num_target", "total")
    ]
    measure = _MEASURES[settings.association]
    return joined.select("source", "target", "num_pairs", "num_users", association=measure(*counts))


def npmi(both: Table, source: Table, target: Table, total: Table) -> Table:
    """Returns normalised pointwise mutual information, in [-1, 1] (Bouma, 2009).

    log(p(s, t) / (p(s) p(t))) / -log p(s, t) over all pairs: 1 if they only occur together, 0 if
    independent.

    Args:
        both: number of pairs of source and target, float64.
        source: number of pairs that begin with the source.
        target: number of pairs that end with the target.
        total: number of pairs.
    """
    share = both / total
    information = (both * total / (source * target)).ln()
    # A log that is one single pair: log p = 0, and the pair only occurs together.
    return ibis.ifelse(share < 1, information / -share.ln().nullif(0), 1.0)


def llr(both: Table, source: Table, target: Table, total: Table) -> Table:
    """Returns Dunning's log-likelihood ratio (1993), brought into (-1, 1) as G2 / (1 + G2).

    G2 = 2 sum k ln(k N / (row k's) (column k's)) over the table of source or not by target or not:
    how sure it is that they belong together, where NPMI tells how much. Negative where they occur
    together less often than by chance. Arguments as for `npmi`.
    """
    cells = [
        (both, source, target),
        (source - both, source, total - target),
        (target - both, total - source, target),
        (total - source - target + both, total - source, total - target),
    ]
    g2 = both * 0.0
    for observed, row, column in cells:
        # An empty cell adds 0; the smallest arguments keep its logarithm finite.
        expected = ibis.greatest(row * column, 1.0)
        ratio = ibis.greatest(observed, 0.5) * total / expected
        g2 = g2 + 2 * observed * ratio.ln()
    size = g2.clip(lower=0.0)  # rounding
    return ibis.ifelse(both * total >= source * target, size / (1 + size), -size / (1 + size))


_MEASURES = {"npmi": npmi, "llr": llr}


def contexts(steps: Table, anonymous: Table, max_session_queries: int) -> Table:
    """Returns what was searched next, with the session before it.

    For training the pair must be k-anonymous, too. Validation rows, which nothing is trained on,
    only need k-anonymous texts: were they limited to known pairs, whatever looks those up would
    seem perfect.

    Returns:
        query, target, session_queries (oldest first), split, weight.
    """
    order = ibis.window(group_by="session", order_by=ORDER)
    earlier = [steps.public.lag(d).over(order) for d in range(max_session_queries, 0, -1)]
    # Spark gives an empty literal no type; nulls are left out below.
    empty = ibis.array([ibis.null("string")])
    rows = steps.select(
        query="public",
        target=steps.public.lead(1).over(order),
        session_queries=ibis.array(earlier) if earlier else empty,
        split=ibis.ifelse(steps.is_valid, "valid", "train"),
    )
    rows = rows.filter(rows.query.notnull() & rows.target.notnull())
    known = rows.filter(rows.split == "train").semi_join(anonymous, [("query", "source"), "target"])
    rows = known.union(rows.filter((rows.split == "valid") & (rows.query != rows.target)))
    rows = rows.mutate(session_queries=rows.session_queries.filter(lambda text: text.notnull()))
    return rows.group_by("query", "target", "session_queries", "split").agg(
        weight=rows.count().cast("float64")
    )
