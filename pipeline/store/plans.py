"""
What keeps statements to the index they were written for, whatever the planner expects.

Nearly all rows of a large table are history. Statistics, made when a tenth of a table has changed, say then that next
to nothing is queued or due, and go on saying so while a hundred thousand jobs are: any index that leads to a queued job
seems as good as the right one, and the whole queue would be read for the first fifty of it.
"""

from sqlalchemy import text

_OFF = "set_config('enable_' || way, 'off', true)"

READ_BY_INDEX = text(f"SELECT {_OFF} FROM unnest(ARRAY['seqscan', 'hashjoin', 'mergejoin']) way")
"""
For the rest of a transaction that reads a little of large tables. Their statistics are of yesterday: by them it looks
like more than it is, and whole tables would be read for it now and then.
"""

_UNORDERED = "ARRAY['seqscan', 'bitmapscan', 'sort', 'incremental_sort']"

READ_IN_ORDER = text(f"SELECT {_OFF} FROM unnest({_UNORDERED}) way")
"""
For the rest of a transaction that takes the first rows in an index's order: they are read along it, and none is sorted.

Not before a statement that joins what it then sorts: to spare the sorting, a whole table would be read in order.
"""

IN_ORDER_FROM_NOW = f"(SELECT count({_OFF}) FROM unnest({_UNORDERED}) way)"
"""The same as a column of the statement before."""


def unseen(condition: str) -> str:
    """The same *condition*, in SQL, but none by which the planner chooses an index."""
    return f"CASE WHEN {condition} THEN true END"


def locked(ids: str, still: str) -> str:
    """
    An SQL query: the `id` of those jobs that nobody holds, of a query that gives *ids*, if they are *still* so.

    They are locked in their order, and each is fetched by its id: no other condition can lead to a job.
    """
    return f"""
        SELECT free.id FROM (SELECT id FROM ({ids}) wanted ORDER BY id) wanted CROSS JOIN LATERAL (
            SELECT * FROM jobs WHERE jobs.id = wanted.id LIMIT 1 FOR UPDATE SKIP LOCKED
        ) free
        WHERE {still}
    """
