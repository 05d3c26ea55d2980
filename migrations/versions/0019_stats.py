"""What happened in each minute, and ever since: tables that the sweep fills, and the indexes it reads them off.

New tables; the indexes are built beside the traffic, the constraint is checked there: nobody waits for a lock. The
previous release keeps working: it names none of this.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0019_stats"
down_revision = "0018_dashboard"

SCHEMA = "pipeline"

INDEXES = {
    "assets_stored_at_idx": "assets (stored_at) WHERE stored_at IS NOT NULL",
    "deliveries_at_idx": "deliveries (at)",
}

KIND = "retention_kind_check"
KINDS = "kind IN ('cancelled', 'completed', 'expired', 'failed', 'keys', 'notices', 'orphans', 'refusals', 'stats')"
FORMER_KINDS = KINDS.replace(", 'stats'", "")


def upgrade() -> None:
    time = TIMESTAMP(timezone=True)
    op.create_table(
        "stats",
        sa.Column("minute", time, nullable=False),
        sa.Column("service_id", sa.Uuid(), nullable=False),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("minute", "service_id", "measure", name=op.f("stats_pk")),
        schema=SCHEMA,
        if_not_exists=True,
    )
    op.create_index(
        "stats_measure_idx",
        "stats",
        ["measure", "minute"],
        schema=SCHEMA,
        postgresql_include=["service_id", "value"],
        if_not_exists=True,
    )
    op.create_table(
        "totals",
        sa.Column("service_id", sa.Uuid(), nullable=False),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("service_id", "measure", name=op.f("totals_pk")),
        schema=SCHEMA,
        if_not_exists=True,
    )
    op.create_table(
        "rollup",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("upto", time, nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("rollup_single_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("rollup_pk")),
        schema=SCHEMA,
        if_not_exists=True,
    )
    op.execute(f"ALTER TABLE {SCHEMA}.retention DROP CONSTRAINT IF EXISTS {KIND}")
    op.execute(f"ALTER TABLE {SCHEMA}.retention ADD CONSTRAINT {KIND} CHECK ({KINDS})")  # a table of a few rows
    with op.get_context().autocommit_block():
        for name, definition in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}")  # half-built by a try that broke off
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {SCHEMA}.{definition}")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in INDEXES:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}")
    op.execute(f"DELETE FROM {SCHEMA}.retention WHERE kind = 'stats'")
    op.execute(f"ALTER TABLE {SCHEMA}.retention DROP CONSTRAINT {KIND}")
    op.execute(f"ALTER TABLE {SCHEMA}.retention ADD CONSTRAINT {KIND} CHECK ({FORMER_KINDS})")
    for name in ("rollup", "totals", "stats"):
        op.drop_table(name, schema=SCHEMA)
