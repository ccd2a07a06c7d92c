-- Runs that wait for an instance which is gone for good: few, and looked for often.
CREATE INDEX trust_ended_remediating
    ON runtime_vm_trust_registry (runtime_vm_instance_id)
    WHERE ended AND lifecycle_state = 'remediating';
