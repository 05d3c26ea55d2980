"""account and workers: one brake for all processes, and who is alive.

New tables only: takes no lock that anybody could wait for.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0003_account"
down_revision = "0002_inbox"

SCHEMA = "pipeline"


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("backoff_until", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("backoff_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("backoff_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("trial", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("recent", sa.Text(), server_default="", nullable=False),
        sa.Column("in_flight_cap", sa.Integer(), nullable=True),
        sa.Column("cap_changed_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("halted_reason", sa.Text(), nullable=True),
        sa.Column("halted_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("halted_balance", sa.Double(), nullable=True),
        sa.Column("probe_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("webhook_secrets", JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("secrets_fetched_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("polls_paid_until", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("pacer", sa.Uuid(), nullable=True),
        sa.Column("pacer_until", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("reconciler", sa.Uuid(), nullable=True),
        sa.Column("reconciler_until", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("swept_at", TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("account_single_check")),
        sa.PrimaryKeyConstraint("id", name="account_pk"),
        schema=SCHEMA,
    )

    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("beat_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="workers_pk"),
        schema=SCHEMA,
    )

    op.execute("INSERT INTO pipeline.account (id) VALUES (1)")


def downgrade() -> None:
    op.drop_table("workers", schema=SCHEMA)
    op.drop_table("account", schema=SCHEMA)
