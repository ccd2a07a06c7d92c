-- What a launch that the gate refused waits to do, once the gate opens.

ALTER TABLE servers
    ADD COLUMN waits_for text CHECK (waits_for IN ('start', 'redeploy'));
COMMENT ON COLUMN servers.waits_for IS
    'told only while the status is pending-…; null there: to start';
CREATE INDEX servers_waiting ON servers (id)
    WHERE status IN ('pending-attestation', 'pending-remediation')
      AND deleted_at IS NULL;

-- What a decision of the gate rests on, by version: so it can be judged later.

ALTER TABLE runtime_policy_decisions
    ADD COLUMN inputs jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(inputs) = 'object'),
    ADD COLUMN blocking text[] NOT NULL DEFAULT '{}',
    ADD COLUMN verb text CHECK (verb IN ('start', 'redeploy', 'relaunch'));
COMMENT ON COLUMN runtime_policy_decisions.blocking IS 'those of the notes that refuse';

-- Instances that are not as they are wanted: few, so whoever looks after them may look
-- often. An order can be given in another runtime than theirs.

ALTER TABLE runtime_vm_instances
    ADD COLUMN unsettled boolean NOT NULL GENERATED ALWAYS AS (
        terminated_at IS NULL
        AND (desired_state = 'terminated'
             OR (desired_state = 'running') <> (power_state = 'running'))) STORED;
COMMENT ON COLUMN runtime_vm_instances.unsettled IS
    'a column, so that the planner knows how few they are';
CREATE INDEX unsettled_instances ON runtime_vm_instances (runtime_owner, id)
    WHERE unsettled;

-- The gate decides in its turn among all that change trust: a hold takes that turn as
-- well, so none falls between a decision and the launch that it allows.

CREATE FUNCTION take_registry_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('runtime_vm_trust_registry'));
    RETURN NULL;
END $$;
CREATE TRIGGER hold_takes_turn BEFORE INSERT ON trust_holds
    FOR EACH STATEMENT EXECUTE FUNCTION take_registry_turn();

-- What metrics count, without reading the fleet.

CREATE INDEX living_instances ON runtime_vm_instances (id) WHERE terminated_at IS NULL;
CREATE INDEX servers_alive_by_status ON servers (status) WHERE deleted_at IS NULL;

-- What the refresher looks for in a large fleet.

CREATE INDEX refresh_jobs_due ON evaluation_refresh_jobs (not_before)
    WHERE status = 'queued';
CREATE INDEX certifications_blocked ON evaluation_certifications (id)
    WHERE blocked_reason IS NOT NULL;
CREATE INDEX certifications_new ON evaluation_certifications (id)
    WHERE next_refresh_at IS NULL AND version = 1;
CREATE INDEX refreshes_of_certification ON evaluation_refresh_jobs (certification_id, id);
