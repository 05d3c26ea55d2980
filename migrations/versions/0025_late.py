"""attempts: those whose tasks the provider's list showed late, by when they were missing from it.

The index is built beside the traffic; few rows are in it. The previous release keeps working: it names none of this.
"""

from alembic import op

revision = "0025_late"
down_revision = "0024_beat"

SCHEMA = "pipeline"
INDEX = "attempts_late_idx"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{INDEX}")  # half-built by a try that broke off
        op.execute(
            f"CREATE INDEX CONCURRENTLY {INDEX} ON {SCHEMA}.attempts (absent_at)"
            " WHERE outcome = 'accepted' AND absent_at IS NOT NULL"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{INDEX}")
