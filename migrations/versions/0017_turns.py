"""jobs: an index by which services take turns at the admission.

Built beside the traffic: nobody waits for a lock. The previous release keeps working: it uses the other index, which
the sweep needs too.
"""

from alembic import op

revision = "0017_turns"
down_revision = "0016_retention"

SCHEMA = "pipeline"
NAME = "jobs_unadmitted_idx"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{NAME}")  # half-built by a try that broke off
        op.execute(
            f"CREATE INDEX CONCURRENTLY {NAME} ON {SCHEMA}.jobs (service_id, due_at)"
            " WHERE state = 'queued' AND NOT admitted"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{NAME}")
