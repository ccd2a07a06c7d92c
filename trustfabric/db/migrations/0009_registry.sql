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
