"""assets: the files that jobs made, and what became of each; what a service's flagged files are to meet.

A new table, and columns with constant defaults: nobody waits for longer than an instant. The previous release keeps
working: it names none of this. What it completes has no row in `assets` until a worker of this release adds it.
"""

from alembic import op

revision = "0013_assets"
down_revision = "0012_enqueue"

SCHEMA = "pipeline"

ASSETS = f"""
    CREATE TABLE {SCHEMA}.assets (
        id uuid NOT NULL,
        job_id uuid NOT NULL,
        index smallint NOT NULL,
        service_id uuid NOT NULL,
        state text NOT NULL DEFAULT 'pending',
        source_url text,
        storage_key text,
        sha256 text,
        bytes bigint,
        content_type text,
        width integer,
        height integer,
        nsfw boolean,
        review text,
        reviewed_by text,
        reviewed_at timestamptz,
        attempts smallint NOT NULL DEFAULT '0',
        gone smallint NOT NULL DEFAULT '0',
        gone_at timestamptz,
        error text,
        worker_id uuid,
        due_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        stored_at timestamptz,
        CONSTRAINT assets_pk PRIMARY KEY (id),
        CONSTRAINT assets_job_id_index_key UNIQUE (job_id, index),
        CONSTRAINT assets_state_check CHECK (state IN ('lost', 'pending', 'stored')),
        CONSTRAINT assets_review_check CHECK (review IN ('flagged', 'purged', 'quarantined', 'released')),
        CONSTRAINT assets_due_check CHECK (due_at IS NULL OR state = 'pending'),
        CONSTRAINT assets_worker_check CHECK (worker_id IS NULL OR due_at IS NOT NULL),
        CONSTRAINT assets_stored_check CHECK (state <> 'stored' OR review = 'purged' OR
            num_nulls(storage_key, sha256, bytes, content_type, stored_at) = 0)
    )
"""

INDEXES = {
    "assets_due_at_idx": "(due_at) WHERE due_at IS NOT NULL",
    "assets_worker_id_idx": "(worker_id) WHERE worker_id IS NOT NULL",
    "assets_pending_idx": "(created_at) WHERE state = 'pending'",
    "assets_quarantined_idx": "(id) WHERE review = 'quarantined'",
    "assets_purged_idx": "(id) WHERE review = 'purged' AND storage_key IS NOT NULL",
    "assets_storage_key_idx": "(storage_key) WHERE storage_key IS NOT NULL",
}

POLICY = "CHECK (nsfw_policy IN ('allow', 'flag', 'quarantine'))"


def upgrade() -> None:
    op.execute(ASSETS)
    for name, columns in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON {SCHEMA}.assets {columns}")
    op.execute(f"ALTER TABLE {SCHEMA}.services ADD nsfw_policy text CONSTRAINT services_nsfw_policy_check {POLICY}")
    op.execute(f"""
        ALTER TABLE {SCHEMA}.account ADD archiving boolean NOT NULL DEFAULT false,
            ADD nsfw_policy text NOT NULL DEFAULT 'quarantine' CONSTRAINT account_nsfw_policy_check {POLICY}
    """)


def downgrade() -> None:
    op.execute(f"ALTER TABLE {SCHEMA}.account DROP nsfw_policy, DROP archiving")
    op.execute(f"ALTER TABLE {SCHEMA}.services DROP nsfw_policy")
    op.execute(f"DROP TABLE {SCHEMA}.assets")
