"""workers: when beat last told one to sweep.

Locks `workers` for an instant. The previous release keeps working: it never names the column.
"""

from alembic import op

revision = "0024_beat"
down_revision = "0023_hours"

SCHEMA = "pipeline"


def upgrade() -> None:
    op.execute(f"ALTER TABLE {SCHEMA}.workers ADD COLUMN told_at timestamptz")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {SCHEMA}.workers DROP COLUMN told_at")
