-- The registry's writes, made lighter: one firing of the trigger a statement, and no
-- look-up of the instance for each row of its history, no pattern to match tags by.

DROP TRIGGER history_notifies ON runtime_vm_trust_history;

CREATE OR REPLACE FUNCTION notify_trust_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('runtime_vm_trust_transition', json_build_object(
        'history_id', f.id,
        'runtime_vm_instance_id', f.runtime_vm_instance_id,
        'previous_status', f.previous_status,
        'current_status', f.current_status,
        'previous_lifecycle_state', f.previous_lifecycle_state,
        'current_lifecycle_state', f.current_lifecycle_state,
        'transition_reason', f.transition_reason,
        'remediation_state', f.remediation_state,
        'remediation_attempts', f.remediation_attempts,
        'freshness_deadline', f.freshness_deadline,
        'provenance_ref', f.provenance_ref,
        'registry_version', f.registry_version,
        'triggered_at', f.triggered_at)::text)
       FROM fresh f;
    RETURN NULL;
END $$;

CREATE TRIGGER history_notifies AFTER INSERT ON runtime_vm_trust_history
    REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION notify_trust_transition();

ALTER TABLE runtime_vm_trust_history
    DROP CONSTRAINT runtime_vm_trust_history_runtime_vm_instance_id_fkey,
    DROP CONSTRAINT runtime_vm_trust_history_remediation_state_check,
    ADD CONSTRAINT history_tag CHECK (
        starts_with(remediation_state, 'remediation:')
        AND char_length(remediation_state) BETWEEN 13 AND 64);
COMMENT ON COLUMN runtime_vm_trust_history.runtime_vm_instance_id IS
    'of an instance: the registry row, which this is the history of, refers to it';
ALTER TABLE runtime_vm_trust_registry
    DROP CONSTRAINT runtime_vm_trust_registry_remediation_state_check,
    ADD CONSTRAINT registry_tag CHECK (
        starts_with(remediation_state, 'remediation:')
        AND char_length(remediation_state) BETWEEN 13 AND 64);

-- What ended with its trust fresh stays overdue for ever: the index of deadlines is of
-- the others only, or each look for decay would pass by all that ever were.

ALTER TABLE runtime_vm_trust_registry ADD COLUMN ended boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN runtime_vm_trust_registry.ended IS
    'whether the instance is terminated; kept by a trigger, no part of its trust';
UPDATE runtime_vm_trust_registry r SET ended = true
  FROM runtime_vm_instances i
 WHERE i.id = r.runtime_vm_instance_id AND i.terminated_at IS NOT NULL;

CREATE FUNCTION mark_ended_trust() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE runtime_vm_trust_registry SET ended = NEW.terminated_at IS NOT NULL
     WHERE runtime_vm_instance_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER instance_ends_its_trust AFTER UPDATE OF terminated_at ON runtime_vm_instances
    FOR EACH ROW WHEN ((OLD.terminated_at IS NULL) <> (NEW.terminated_at IS NULL))
    EXECUTE FUNCTION mark_ended_trust();

DROP INDEX registry_by_freshness;
CREATE INDEX registry_by_freshness ON runtime_vm_trust_registry (freshness_deadline)
    WHERE freshness_deadline IS NOT NULL AND NOT ended;
