"""endpoints.failed_at, and ages for deliveries and endpoints: what is left of receivers that work, or are no more.

The column's default is the time of this migration, so that nothing goes before its age; it rewrites nothing. The table
has a row for each receiver that has failed: its indexes are built in an instant. The previous release keeps working: it
names none of this, and what fails while it runs counts from this migration.
"""

from alembic import op

revision = "0020_ages"
down_revision = "0019_stats"

SCHEMA = "pipeline"

FORMER = "'cancelled', 'completed', 'expired', 'failed', 'keys', 'notices', 'orphans', 'refusals', 'stats'"
KINDS = FORMER.replace("'expired'", "'deliveries', 'endpoints', 'expired'")


def upgrade() -> None:
    kinds(KINDS)
    op.execute(f"ALTER TABLE {SCHEMA}.endpoints ADD COLUMN failed_at timestamptz NOT NULL DEFAULT now()")
    op.execute(f"ALTER TABLE {SCHEMA}.endpoints ALTER COLUMN failed_at SET DEFAULT clock_timestamp()")
    op.execute(f"CREATE INDEX endpoints_off_idx ON {SCHEMA}.endpoints (name) WHERE off_at IS NOT NULL")
    op.execute(f"CREATE INDEX endpoints_failed_at_idx ON {SCHEMA}.endpoints (failed_at)")


def downgrade() -> None:
    op.execute(f"DROP INDEX {SCHEMA}.endpoints_off_idx, {SCHEMA}.endpoints_failed_at_idx")
    op.execute(f"ALTER TABLE {SCHEMA}.endpoints DROP COLUMN failed_at")
    op.execute(f"DELETE FROM {SCHEMA}.retention WHERE kind NOT IN ({FORMER})")
    kinds(FORMER)


def kinds(listed: str) -> None:
    op.execute(f"ALTER TABLE {SCHEMA}.retention DROP CONSTRAINT retention_kind_check")
    op.execute(f"ALTER TABLE {SCHEMA}.retention ADD CONSTRAINT retention_kind_check CHECK (kind IN ({listed}))")
