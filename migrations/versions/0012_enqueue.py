"""pipeline.enqueue(): a job queued inside the caller's own transaction.

Two functions, and no table: nobody waits for a lock, open transactions that enqueue least of all. Nobody may call them
until it is granted. The previous release keeps working: its admission finds the jobs as well.
"""

from alembic import op

revision = "0012_enqueue"
down_revision = "0011_lists"

SCHEMA = "pipeline"

SAFE = f"SET search_path = {SCHEMA}, pg_temp"
"""A caller's search_path must not choose what runs with our rights."""

# RFC 9562, version 7: milliseconds since 1970, then the fraction of one, so that ids made in a row are in order.
NEW_ID = f"""
    CREATE FUNCTION {SCHEMA}.new_id() RETURNS uuid LANGUAGE sql VOLATILE {SAFE} AS $$
        SELECT encode(overlay(
            uuid_send(gen_random_uuid())
            PLACING int8send(((us / 1000) << 16) | 28672 | (us % 1000 * 4096 / 1000)) FROM 1 FOR 8
        ), 'hex')::uuid
        FROM (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) now
    $$
"""

SIGNATURE = "text, jsonb, text, text, int, timestamptz, float8, text, text, jsonb"

# The limits are those of the HTTP API. What a model takes, and whether a budget covers it, is asked at admission.
ENQUEUE = f"""
    CREATE FUNCTION {SCHEMA}.enqueue(
        service text,
        input jsonb,
        model text DEFAULT NULL,
        idempotency_key text DEFAULT NULL,
        priority int DEFAULT 0,
        run_at timestamptz DEFAULT NULL,
        deadline_s float8 DEFAULT NULL,
        callback_url text DEFAULT NULL,
        callback_task text DEFAULT NULL,
        metadata jsonb DEFAULT '{{}}'
    ) RETURNS uuid LANGUAGE plpgsql VOLATILE SECURITY DEFINER {SAFE} AS $$
    DECLARE
        made uuid := new_id();
        starts timestamptz := clock_timestamp();
        caller uuid;
        may_name jsonb;  -- its Celery tasks
        wrong text[];  -- the field, and what to do about it
        mark bytea;
        earlier bytea;
        earlier_job uuid;
    BEGIN
        metadata := coalesce(metadata, '{{}}');
        SELECT s.id, s.callback_tasks INTO caller, may_name
        FROM services s WHERE s.name = enqueue.service AND s.revoked_at IS NULL;
        wrong := CASE
            WHEN caller IS NULL THEN ARRAY['service',
                'is unknown, or revoked; `pipeline services create NAME` adds one.']
            WHEN input IS NULL OR jsonb_typeof(input) <> 'object' THEN ARRAY['input', 'must be a JSON object.']
            WHEN octet_length(input::text) > 262144 THEN ARRAY['input', 'must have at most 256 KiB.']
            WHEN input @? 'strict $.**{{32}}' THEN ARRAY['input', 'must be nested less than 32 deep.']
            WHEN input @? 'strict $.** ? (@.type() == "number" && (@ > 1e308 || @ < -1e308))'
                THEN ARRAY['input', 'holds a number that is too large; send it as a text.']
            WHEN length(model) > 200 THEN ARRAY['model', 'must have at most 200 characters.']
            WHEN idempotency_key !~ '^[\\x21-\\x7e][\\x20-\\x7e]{{0,254}}$'
                THEN ARRAY['idempotency_key', 'must be 1 to 255 printable ASCII characters.']
            WHEN priority NOT BETWEEN -10 AND 10 THEN ARRAY['priority', 'must be from -10 to 10.']
            WHEN run_at > starts + interval '366 days' THEN ARRAY['run_at', 'must be at most 366 days from now.']
            WHEN deadline_s NOT BETWEEN 1 AND 604800
                THEN ARRAY['deadline_s', 'must be from 1 to 604800 seconds (seven days).']
            WHEN length(callback_url) > 2000 OR callback_url ~ '[^\\x21-\\x7e]'
                OR callback_url !~* '^https?://[^/?#@]+([/?][^#]*)?$' THEN ARRAY['callback_url',
                'must be an http:// or https:// address, without credentials or fragment, of at most 2000 characters.']
            WHEN callback_task IS NOT NULL AND NOT EXISTS (
                SELECT FROM jsonb_array_elements(may_name) t WHERE t ->> 'task' = enqueue.callback_task)
                THEN ARRAY['callback_task', 'is not one that this service may name; an operator allows it.']
            WHEN jsonb_typeof(metadata) <> 'object' THEN ARRAY['metadata', 'must be a JSON object.']
            WHEN (SELECT count(*) FROM jsonb_object_keys(metadata)) > 50
                THEN ARRAY['metadata', 'must have at most 50 entries.']
            WHEN EXISTS (SELECT FROM jsonb_object_keys(metadata) k WHERE length(k) NOT BETWEEN 1 AND 64)
                THEN ARRAY['metadata', 'must have names of 1 to 64 characters.']
            WHEN EXISTS (SELECT FROM jsonb_each(metadata) m
                         WHERE jsonb_typeof(m.value) <> 'string' OR length(m.value #>> '{{}}') > 500)
                THEN ARRAY['metadata', 'must have texts of at most 500 characters as its values.']
        END;
        IF wrong IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', COLUMN = wrong[1],
                MESSAGE = 'pipeline.enqueue: ' || wrong[1] || ' ' || wrong[2];
        END IF;

        IF idempotency_key IS NOT NULL THEN
            -- 'sql': a key names one request of its service, whatever the door; by another door it is another request
            mark := sha256(convert_to('sql' || jsonb_build_array(
                input, nullif(model, ''), coalesce(priority, 0), extract(epoch FROM run_at)::text, deadline_s,
                callback_url, callback_task, metadata)::text, 'UTF8'));
            INSERT INTO idempotency_keys AS k (service_id, key, fingerprint, job_id)
            VALUES (caller, enqueue.idempotency_key, mark, made)
            ON CONFLICT ON CONSTRAINT idempotency_keys_pk DO NOTHING;
            IF NOT FOUND THEN
                SELECT k.fingerprint, k.job_id INTO earlier, earlier_job
                FROM idempotency_keys k WHERE k.service_id = caller AND k.key = enqueue.idempotency_key;
                IF earlier = mark AND earlier_job IS NOT NULL THEN
                    RETURN earlier_job;
                END IF;
                RAISE EXCEPTION USING ERRCODE = 'unique_violation', COLUMN = 'idempotency_key',
                    TABLE = 'idempotency_keys', SCHEMA = '{SCHEMA}',
                    MESSAGE = 'pipeline.enqueue: idempotency_key was used with another request.',
                    HINT = 'Use a new key for a new request, or repeat the first one unchanged.';
            END IF;
        END IF;

        starts := greatest(run_at, clock_timestamp());  -- a time that has passed is now
        INSERT INTO jobs (id, service_id, model, input, metadata, state, priority, run_at, due_at, deadline_at,
                          callback_url, callback_task, admitted, last_seq, created_at)
        VALUES (made, caller, coalesce(enqueue.model, ''), enqueue.input, enqueue.metadata, 'queued',
                coalesce(enqueue.priority, 0), starts, starts,
                starts + make_interval(secs => coalesce(enqueue.deadline_s, (SELECT a.deadline_s FROM account a))),
                enqueue.callback_url, enqueue.callback_task, false, 1, clock_timestamp());
        INSERT INTO events (job_id, seq, at, kind) VALUES (made, 1, clock_timestamp(), 'job.queued');
        RETURN made;
    END $$
"""


def upgrade() -> None:
    op.execute(NEW_ID)
    op.execute(ENQUEUE)
    for function in ("new_id()", f"enqueue({SIGNATURE})"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION {SCHEMA}.{function} FROM PUBLIC")


def downgrade() -> None:
    op.execute(f"DROP FUNCTION {SCHEMA}.enqueue({SIGNATURE})")
    op.execute(f"DROP FUNCTION {SCHEMA}.new_id()")
