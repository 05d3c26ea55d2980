"""stats_hours: what happened in each hour, so that a month is looked at without reading its minutes.

A new table, filled from the minutes there are. The previous release keeps working, and counts minutes alone: those it
counts while both run are missing from their hour, and from nothing else.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0023_hours"
down_revision = "0022_replays"

SCHEMA = "pipeline"


def upgrade() -> None:
    op.create_table(
        "stats_hours",
        sa.Column("hour", TIMESTAMP(timezone=True), nullable=False),
        sa.Column("service_id", sa.Uuid(), nullable=False),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "service_id", "measure", name=op.f("stats_hours_pk")),
        schema=SCHEMA,
    )
    op.execute(f"""
        INSERT INTO {SCHEMA}.stats_hours (hour, service_id, measure, value)
        SELECT date_trunc('hour', minute, 'UTC'), service_id, measure, sum(value) FROM {SCHEMA}.stats GROUP BY 1, 2, 3
    """)
    op.create_index(
        "stats_hours_measure_idx",
        "stats_hours",
        ["measure", "hour"],
        schema=SCHEMA,
        postgresql_include=["service_id", "value"],
    )


def downgrade() -> None:
    op.drop_table("stats_hours", schema=SCHEMA)
