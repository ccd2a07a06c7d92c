-- Runs that wait for an instance which is gone for good are looked for often.
CREATE INDEX trust_ended
    ON runtime_vm_trust_registry (runtime_vm_instance_id) WHERE ended;
