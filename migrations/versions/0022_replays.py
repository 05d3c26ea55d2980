"""callbacks: what came of replaying one; assets: those that a person decided about, by when.

Locks `callbacks` for an instant: the columns are empty, the constraint is checked and the index built beside the
traffic. The previous release keeps working: it names none of this.
"""

from alembic import op

revision = "0022_replays"
down_revision = "0021_exemptions"

SCHEMA = "pipeline"
VERDICTS = "'applied', 'duplicate', 'late', 'orphan', 'stale', 'suspicious', 'unreadable'"
CONSTRAINT = "callbacks_replayed_verdict_check"
INDEX = "assets_reviewed_at_idx"


def upgrade() -> None:
    op.execute(f"""
        ALTER TABLE {SCHEMA}.callbacks ADD IF NOT EXISTS replayed_at timestamptz,
            ADD IF NOT EXISTS replayed_verdict text
    """)
    op.execute(f"ALTER TABLE {SCHEMA}.callbacks DROP CONSTRAINT IF EXISTS {CONSTRAINT}")
    op.execute(
        f"ALTER TABLE {SCHEMA}.callbacks ADD CONSTRAINT {CONSTRAINT} CHECK (replayed_verdict IN ({VERDICTS})) NOT VALID"
    )
    with op.get_context().autocommit_block():
        op.execute(f"ALTER TABLE {SCHEMA}.callbacks VALIDATE CONSTRAINT {CONSTRAINT}")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{INDEX}")  # half-built by a try that broke off
        op.execute(f"CREATE INDEX CONCURRENTLY {INDEX} ON {SCHEMA}.assets (reviewed_at) WHERE reviewed_at IS NOT NULL")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{INDEX}")
    op.execute(f"ALTER TABLE {SCHEMA}.callbacks DROP replayed_verdict, DROP replayed_at")
