-- What a launch makes expected, what is remembered between two challenges, and the
-- keys that results of attestation are signed with.

CREATE TABLE attestation_launches (
    runtime_vm_instance_id bigint PRIMARY KEY REFERENCES runtime_vm_instances (id),
    measurement            bytea CHECK (length(measurement) = 48),
    boots_kernel           boolean NOT NULL DEFAULT false,
    guest_policy           numeric(20),
    inputs                 jsonb NOT NULL,
    why_none               text,
    derived_at             timestamptz NOT NULL,
    CONSTRAINT launch_derived_or_why_not
        CHECK ((measurement IS NULL) <> (why_none IS NULL)
            AND (measurement IS NULL) = (guest_policy IS NULL))
);

CREATE TABLE attestation_clocks (
    runtime_vm_instance_id bigint PRIMARY KEY REFERENCES runtime_vm_instances (id),
    ak_sha256              text NOT NULL,
    boot_id                uuid,
    reset_count            bigint NOT NULL,
    restart_count          bigint NOT NULL,
    clock_ms               numeric(20) NOT NULL
);

CREATE TABLE attestation_silences (
    runtime_vm_instance_id bigint PRIMARY KEY REFERENCES runtime_vm_instances (id),
    misses                 integer NOT NULL CHECK (misses > 0),
    ask_after              timestamptz NOT NULL
);

-- Public halves only: every runtime can verify what any of them signed.
CREATE TABLE attestation_verifier_keys (
    kid                    text PRIMARY KEY,
    jwk                    jsonb NOT NULL,
    runtime_id             text NOT NULL,
    created_at             timestamptz NOT NULL DEFAULT now()
);
