"""The dashboard: who is signed in, who failed to, and who did what; callbacks that did not simply apply.

The index is built beside the traffic. The previous release keeps working: it names none of this.
"""

from alembic import op

revision = "0018_dashboard"
down_revision = "0017_turns"

SCHEMA = "pipeline"
INDEX = "callbacks_odd_idx"


def upgrade() -> None:
    op.execute(f"""
        CREATE TABLE {SCHEMA}.sessions (
            id uuid NOT NULL,
            name text NOT NULL,
            role text NOT NULL,
            password_print bytea NOT NULL,
            started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            expires_at timestamptz NOT NULL,
            CONSTRAINT sessions_pk PRIMARY KEY (id),
            CONSTRAINT sessions_role_check CHECK (role IN ('operator', 'viewer'))
        )
    """)
    op.execute(f"CREATE INDEX sessions_expires_at_idx ON {SCHEMA}.sessions (expires_at)")
    op.execute(f"""
        CREATE TABLE {SCHEMA}.sign_ins (
            address text NOT NULL,
            failures integer NOT NULL,
            since timestamptz NOT NULL DEFAULT clock_timestamp(),
            CONSTRAINT sign_ins_pk PRIMARY KEY (address)
        )
    """)
    op.execute(f"""
        CREATE TABLE {SCHEMA}.audit (
            id uuid NOT NULL,
            at timestamptz NOT NULL DEFAULT clock_timestamp(),
            who text NOT NULL,
            door text NOT NULL,
            action text NOT NULL,
            target text,
            data jsonb NOT NULL DEFAULT '{{}}',
            outcome text,
            CONSTRAINT audit_pk PRIMARY KEY (id)
        )
    """)
    op.execute(f"CREATE INDEX audit_target_idx ON {SCHEMA}.audit (target, id)")
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{INDEX}")  # half-built by a try that broke off
        op.execute(f"CREATE INDEX CONCURRENTLY {INDEX} ON {SCHEMA}.callbacks (verdict, id) WHERE verdict <> 'applied'")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{INDEX}")
    for table in ("audit", "sign_ins", "sessions"):
        op.execute(f"DROP TABLE {SCHEMA}.{table}")
