"""screen_exemptions: services that the lists of terms of all services do not hold for.

A new table: nobody waits. The previous release keeps working: it names none of this, and refuses as before.
"""

from alembic import op

revision = "0021_exemptions"
down_revision = "0020_ages"

SCHEMA = "pipeline"

EXEMPTIONS = f"""
    CREATE TABLE {SCHEMA}.screen_exemptions (
        scope text NOT NULL,
        category text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT screen_exemptions_pk PRIMARY KEY (scope, category),
        CONSTRAINT screen_exemptions_category_check
            CHECK (category IN ('adult', 'hate', 'political', 'real_person', 'violence'))
    )
"""


def upgrade() -> None:
    op.execute(EXEMPTIONS)


def downgrade() -> None:
    op.execute(f"DROP TABLE {SCHEMA}.screen_exemptions")
