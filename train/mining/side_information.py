"""Side information of impressions: what else the engine knew, and which of it is k-anonymous.

A text of a query's kind must be a k-anonymous query, any other must have been shown to k users.
Knows nothing of suggestions and clicks.
"""

import ibis

from engine.formats.prompt import COOCCURRING, SESSION
from train.mining.logs import Table


def side_items(rows: Table, clean: Table, public: Table, min_users: int) -> Table:
    """Returns the side information of all rows of impressions.

    Columns: request_id, user, first (whether of the first row of the request), place, kind, text,
    is_public (k-anonymous).

    Args:
        rows: request_id, user, side_information, position, text.
        clean: raw texts and what they became (anonymity.CLEAN_SCHEMA).
        public: the k-anonymous queries.
        min_users: k.
    """
    rows = rows.mutate(num_items=rows.side_information.length().fill_null(0))
    in_order = ["position", "text", "user", "num_items"]  # equal rows may differ in their items
    by_place = ibis.window(group_by="request_id", order_by=in_order)
    ranked = rows.mutate(first=ibis.row_number().over(by_place) == 0)
    ranked = ranked.select("request_id", "user", "side_information", "first")
    items = ranked.unnest("side_information", offset="place", keep_empty=False)
    items = items.select(
        "request_id",
        "user",
        "first",
        "place",
        kind=items.side_information["kind"],
        raw=items.side_information["text"],
    )
    known = clean.filter(clean.text.notnull()).select(known_raw="raw", text="text")
    items = items.left_join(known, items.raw == known.known_raw)
    items = items.filter(items.raw.notnull()).drop("known_raw")
    first = items.filter(items.first)
    readers = first.group_by("kind", "text").agg(num_users=first.user.nunique())
    is_read = readers.filter(readers.num_users >= min_users)
    is_query = items.kind.isin([SESSION, COOCCURRING]).fill_null(False)
    queries = items.filter(is_query).semi_join(public, "text")
    others = items.filter(~is_query).semi_join(is_read, ["kind", "text"])
    found = queries.union(others).mutate(is_public=ibis.literal(True))
    rest_of_queries = items.filter(is_query).anti_join(public, "text")
    rest_of_others = items.filter(~is_query).anti_join(is_read, ["kind", "text"])
    rest = rest_of_queries.union(rest_of_others).mutate(is_public=ibis.literal(False))
    return found.union(rest)


def side_information(items: Table, kinds: list[str]) -> Table:
    """Returns per request its k-anonymous side information of these kinds: side_request, items."""
    kept = items.filter(items.first & items.is_public & items.kind.isin(kinds))
    placed = ibis.struct({"place": kept.place, "kind": kept.kind, "text": kept.text})
    grouped = kept.group_by(side_request="request_id").agg(items=placed.collect())
    in_order = grouped.items.sort()
    return grouped.select(
        "side_request",
        items=in_order.map(lambda item: ibis.struct({"kind": item.kind, "text": item.text})),
    )
