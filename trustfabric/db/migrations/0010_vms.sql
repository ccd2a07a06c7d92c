-- Since when its hypervisor knows a VM, by the name that is recorded from then on. What a
-- restarted runtime must not forget of it: when it crashed of late, and the reboots that
-- its hypervisor told of and no new boot has covered yet.
ALTER TABLE runtime_vm_instances
    ADD COLUMN defined_at    timestamptz,
    ADD COLUMN crashed_at    timestamptz[] NOT NULL DEFAULT '{}',
    ADD COLUMN reboots_heard integer NOT NULL DEFAULT 0,
    ADD COLUMN reboots_noted integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT crashes_are_few CHECK (cardinality(crashed_at) <= 20),
    ADD CONSTRAINT reboots_add_up CHECK (reboots_noted BETWEEN 0 AND reboots_heard);
UPDATE runtime_vm_instances SET defined_at = created_at WHERE boot_id IS NOT NULL;
