-- How many people have to approve a run, and how many did; and when it was late.

ALTER TABLE runtime_vm_remediation_runs
    ADD COLUMN approvals_required integer NOT NULL DEFAULT 0
        CHECK (approvals_required >= 0),
    ADD COLUMN approvals_given integer NOT NULL DEFAULT 0 CHECK (approvals_given >= 0),
    ADD COLUMN sla_breached_at timestamptz;
COMMENT ON COLUMN runtime_vm_remediation_runs.sla_breached_at IS
    'set once, with the event that says so';

UPDATE runtime_vm_remediation_runs r
   SET approvals_required = 1,
       approvals_given = (r.approval_state = 'approved')::integer
 WHERE r.approval_required;
UPDATE runtime_vm_remediation_runs r
   SET sla_breached_at = e.at
  FROM runtime_vm_remediation_events e
 WHERE e.run_id = r.id AND e.kind = 'status' AND e.message = 'sla-breached';

CREATE INDEX runs_by_sla ON runtime_vm_remediation_runs (sla_deadline)
    WHERE status IN ('pending', 'running') AND sla_breached_at IS NULL;
CREATE INDEX runs_retrying ON runtime_vm_remediation_runs (not_before)
    WHERE status = 'pending' AND not_before IS NOT NULL;
