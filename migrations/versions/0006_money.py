"""prices and budgets; on each job what it costs, what is reserved for it, and whether it was admitted.

Locks `jobs` and `notifications` for an instant: constant defaults rewrite nothing, and the constraints hold for every
row there is, so they are checked for new ones only. The previous release keeps working: it names none of this, and
what it accepts has yet to be admitted.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0006_money"
down_revision = "0005_notifications"

SCHEMA = "pipeline"

CHECKS = {
    "jobs_price_check": ("jobs", "price >= 0"),
    "jobs_input_check": ("jobs", "jsonb_typeof(input) = 'object'"),
    "jobs_options_check": ("jobs", "jsonb_typeof(options) = 'object'"),
    "jobs_metadata_check": ("jobs", "jsonb_typeof(metadata) = 'object'"),
    "notifications_audience_check": ("notifications", "audience IN ('operator', 'service')"),
}


def upgrade() -> None:
    usd = sa.Numeric(12, 6)
    op.add_column(
        "jobs", sa.Column("admitted", sa.Boolean(), server_default=sa.text("false"), nullable=False), schema=SCHEMA
    )
    op.add_column("jobs", sa.Column("price", usd, nullable=True), schema=SCHEMA)
    op.add_column("jobs", sa.Column("reserved", usd, server_default=sa.text("0"), nullable=False), schema=SCHEMA)
    op.add_column(
        "notifications", sa.Column("audience", sa.Text(), server_default="service", nullable=False), schema=SCHEMA
    )
    op.add_column(
        "notifications", sa.Column("data", JSONB(), server_default=sa.text("'{}'"), nullable=False), schema=SCHEMA
    )
    for name, (table, condition) in CHECKS.items():
        op.execute(f"ALTER TABLE {SCHEMA}.{table} ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")

    op.create_table(
        "prices",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("usd", usd, nullable=True),
        sa.Column("fetched_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("usd >= 0", name=op.f("prices_usd_check")),
        sa.PrimaryKeyConstraint("model", "key", name=op.f("prices_pk")),
        schema=SCHEMA,
    )
    op.create_table(
        "budgets",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("limit_usd", usd, nullable=False),
        sa.Column("reserved", usd, server_default=sa.text("0"), nullable=False),
        sa.Column("spent", usd, server_default=sa.text("0"), nullable=False),
        sa.Column("since", sa.Date(), nullable=False),
        sa.Column("uncounted_before", TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("period IN ('day', 'month')", name=op.f("budgets_period_check")),
        sa.CheckConstraint("limit_usd >= 0", name=op.f("budgets_limit_usd_check")),
        sa.PrimaryKeyConstraint("scope", "period", name=op.f("budgets_pk")),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("budgets", schema=SCHEMA)
    op.drop_table("prices", schema=SCHEMA)
    for name, (table, _) in CHECKS.items():
        op.execute(f"ALTER TABLE {SCHEMA}.{table} DROP CONSTRAINT {name}")
    op.drop_column("notifications", "data", schema=SCHEMA)
    op.drop_column("notifications", "audience", schema=SCHEMA)
    for column in ("reserved", "price", "admitted"):
        op.drop_column("jobs", column, schema=SCHEMA)
