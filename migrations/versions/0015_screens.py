"""screens: the terms that prompts are screened for.

A new table, and a column without a default: nobody waits for longer than an instant. The previous release keeps
working: it names none of this, and screens nothing.
"""

from alembic import op

revision = "0015_screens"
down_revision = "0014_delivery"

SCHEMA = "pipeline"

SCREENS = f"""
    CREATE TABLE {SCHEMA}.screens (
        scope text NOT NULL,
        category text NOT NULL,
        term text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT screens_pk PRIMARY KEY (scope, category, term),
        CONSTRAINT screens_category_check CHECK (category IN ('adult', 'hate', 'political', 'real_person', 'violence')),
        CONSTRAINT screens_term_check CHECK (length(term) BETWEEN 1 AND 100)
    )
"""


def upgrade() -> None:
    op.execute(SCREENS)
    op.execute(f"ALTER TABLE {SCHEMA}.account ADD screens_changed_at timestamptz")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {SCHEMA}.account DROP screens_changed_at")
    op.execute(f"DROP TABLE {SCHEMA}.screens")
