"""notifications: to whom, how often tried, by whom just now; the log of deliveries; endpoints that fail; secrets.

Locks each table for an instant: constant defaults rewrite nothing, the constraint is checked and the indexes are built
beside the traffic; a try that broke off there can be repeated. The previous release keeps working: what it plans has
no endpoint yet, and is given one when due.

Of what was planned before anybody sent it, that of the last day is sent; the rest can be replayed by hand.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0014_delivery"
down_revision = "0013_assets"

SCHEMA = "pipeline"

STATE = "notifications_state_check"
STATES = "state IN ('dead', 'delivered', 'pending', 'unaddressed')"
FORMER_STATES = "state IN ('dead', 'delivered', 'pending')"

INDEXES = {
    "notifications_endpoint_idx": "(endpoint, due_at) WHERE due_at IS NOT NULL",
    "notifications_worker_id_idx": "(worker_id) WHERE worker_id IS NOT NULL",
    "notifications_dead_idx": "(created_at) WHERE state = 'dead'",
}

SETTLE = f"""
    UPDATE {SCHEMA}.notifications n
    SET state = CASE WHEN a.addressed THEN 'dead' ELSE 'unaddressed' END, due_at = NULL, ended_at = clock_timestamp(),
        error = CASE WHEN a.addressed THEN 'planned long before notifications were sent' END
    FROM (
        SELECT n.id, coalesce(j.callback_task, j.callback_url, s.callback_url) IS NOT NULL AS addressed
        FROM {SCHEMA}.notifications n
        LEFT JOIN {SCHEMA}.jobs j ON j.id = n.job_id LEFT JOIN {SCHEMA}.services s ON s.id = j.service_id
        WHERE n.state = 'pending' AND n.created_at < clock_timestamp() - interval '1 day'
    ) a
    WHERE n.id = a.id AND n.state = 'pending'
"""


def upgrade() -> None:
    time = TIMESTAMP(timezone=True)
    none = sa.text("'[]'")
    for table, column in (
        ("notifications", sa.Column("endpoint", sa.Text(), nullable=True)),
        ("notifications", sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False)),
        ("notifications", sa.Column("tries", sa.SmallInteger(), server_default="0", nullable=False)),
        ("notifications", sa.Column("worker_id", sa.Uuid(), nullable=True)),
        ("notifications", sa.Column("error", sa.Text(), nullable=True)),
        ("notifications", sa.Column("replayed_at", time, nullable=True)),
        ("notifications", sa.Column("ended_at", time, nullable=True)),
        ("services", sa.Column("callback_secrets", JSONB(), server_default=none, nullable=False)),
        ("account", sa.Column("operator_secrets", JSONB(), server_default=none, nullable=False)),
    ):
        op.add_column(table, column, schema=SCHEMA, if_not_exists=True)
    op.execute(f"ALTER TABLE {SCHEMA}.notifications DROP CONSTRAINT IF EXISTS {STATE}")
    op.execute(f"ALTER TABLE {SCHEMA}.notifications ADD CONSTRAINT {STATE} CHECK ({STATES}) NOT VALID")
    op.create_table(
        "deliveries",
        sa.Column("notification_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column("at", time, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("request", JSONB(), nullable=True),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["notification_id"],
            [f"{SCHEMA}.notifications.id"],
            name=op.f("deliveries_notification_id_fk"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("notification_id", "number", name=op.f("deliveries_pk")),
        schema=SCHEMA,
        if_not_exists=True,
    )
    op.create_table(
        "endpoints",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("failing_since", time, nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("off_at", time, nullable=True),
        sa.Column("probe_at", time, nullable=True),
        sa.CheckConstraint("(off_at IS NULL) = (probe_at IS NULL)", name=op.f("endpoints_off_is_probed_check")),
        sa.PrimaryKeyConstraint("name", name=op.f("endpoints_pk")),
        schema=SCHEMA,
        if_not_exists=True,
    )
    with op.get_context().autocommit_block():
        op.execute(f"ALTER TABLE {SCHEMA}.notifications VALIDATE CONSTRAINT {STATE}")
        op.execute(SETTLE)
        for name, columns in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}")  # half-built by a try that broke off
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {SCHEMA}.notifications {columns}")


def downgrade() -> None:
    op.drop_table("endpoints", schema=SCHEMA)
    op.drop_table("deliveries", schema=SCHEMA)
    op.execute(f"UPDATE {SCHEMA}.notifications SET state = 'delivered' WHERE state = 'unaddressed'")
    op.execute(f"ALTER TABLE {SCHEMA}.notifications DROP CONSTRAINT {STATE}")
    op.execute(f"ALTER TABLE {SCHEMA}.notifications ADD CONSTRAINT {STATE} CHECK ({FORMER_STATES})")
    op.drop_column("account", "operator_secrets", schema=SCHEMA)
    op.drop_column("services", "callback_secrets", schema=SCHEMA)
    for name in INDEXES:
        op.execute(f"DROP INDEX {SCHEMA}.{name}")
    for column in ("ended_at", "replayed_at", "error", "worker_id", "tries", "attempts", "endpoint"):
        op.drop_column("notifications", column, schema=SCHEMA)
