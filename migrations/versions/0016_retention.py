"""How long things are kept: ages per service and kind, what is left of pruned jobs, and the indexes that find the old.

New tables, and a column on a table of one row; the indexes are built beside the traffic: nobody waits for a lock. The
previous release keeps working: it names none of this, and prunes nothing.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0016_retention"
down_revision = "0015_screens"

SCHEMA = "pipeline"

INDEXES = {
    "jobs_ended_idx": "jobs (service_id, state, coalesce(finished_at, deadline_at)) WHERE due_at IS NULL",
    "idempotency_keys_age_idx": "idempotency_keys (service_id, created_at)",
    "callbacks_orphans_idx": "callbacks (received_at) WHERE job_id IS NULL",
    "notifications_notices_idx": "notifications (created_at) WHERE job_id IS NULL AND due_at IS NULL",
    "refusals_at_idx": "refusals (at)",
    "assets_lost_idx": "assets (created_at) WHERE state = 'lost'",
}

KINDS = "'cancelled', 'completed', 'expired', 'failed', 'keys', 'notices', 'orphans', 'refusals'"


UNLABEL = f"""
    CREATE OR REPLACE FUNCTION {SCHEMA}.unlabel_jobs() RETURNS trigger LANGUAGE plpgsql
    SET search_path = {SCHEMA}, pg_temp AS $$
    BEGIN
        {{statement}}
        RETURN NULL;
    END $$
"""

FORMER = """
        DELETE FROM labels l USING gone CROSS JOIN LATERAL jsonb_each_text(gone.metadata) label
        WHERE l.service_id = gone.service_id AND l.name = label.key AND l.value = label.value AND l.job_id = gone.id;
"""

# Each label by its whole key: else those of a job are looked for among all of its service, or all labels are read.
BY_KEY = """
        WITH named AS MATERIALIZED (
            SELECT gone.service_id, label.key, label.value, gone.id
            FROM gone CROSS JOIN LATERAL jsonb_each_text(gone.metadata) label
        )
        DELETE FROM labels l USING named n
        WHERE l.service_id = n.service_id AND l.name = n.key AND l.value = n.value AND l.job_id = n.id;
"""


def upgrade() -> None:
    time = TIMESTAMP(timezone=True)
    now = sa.text("clock_timestamp()")
    with op.get_context().autocommit_block():
        for name, definition in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}")  # half-built by a try that broke off
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {SCHEMA}.{definition}")
    op.execute(UNLABEL.format(statement=BY_KEY))
    op.create_table(
        "retention",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("age_s", sa.BigInteger(), nullable=True),
        sa.Column("files", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("set_at", time, server_default=now, nullable=False),
        sa.CheckConstraint(f"kind IN ({KINDS})", name=op.f("retention_kind_check")),
        sa.CheckConstraint("age_s >= 86400", name=op.f("retention_age_s_check")),
        sa.PrimaryKeyConstraint("scope", "kind", name=op.f("retention_pk")),
        schema=SCHEMA,
    )
    op.create_table(
        "pruned",
        sa.Column("service_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.Column("spent", sa.Numeric(12, 6), nullable=False),
        sa.Column("last_start", time, nullable=True),
        sa.PrimaryKeyConstraint("service_id", "day", name=op.f("pruned_pk")),
        schema=SCHEMA,
    )
    op.create_table(
        "leftovers",
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("since", time, server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("storage_key", name=op.f("leftovers_pk")),
        schema=SCHEMA,
    )
    op.add_column("account", sa.Column("pruned_at", time, server_default=now, nullable=False), schema=SCHEMA)
    op.add_column("account", sa.Column("at_risk_at", time, nullable=True), schema=SCHEMA)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in INDEXES:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}")
    op.execute(UNLABEL.format(statement=FORMER))
    op.drop_column("account", "at_risk_at", schema=SCHEMA)
    op.drop_column("account", "pruned_at", schema=SCHEMA)
    op.drop_table("leftovers", schema=SCHEMA)
    op.drop_table("pruned", schema=SCHEMA)
    op.drop_table("retention", schema=SCHEMA)
