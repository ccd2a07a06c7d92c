-- Accelerators that give evidence of themselves: each is asked and judged by itself, and
-- its verdict is what its posture rests on.
ALTER TABLE attestation_challenges
    ADD COLUMN accelerator_id text CHECK (char_length(accelerator_id) BETWEEN 1 AND 200);
COMMENT ON COLUMN attestation_challenges.accelerator_id IS
    'which accelerator of the instance is asked; NULL: the VM itself';

ALTER TABLE runtime_vm_attestations
    ADD COLUMN accelerator_id text CHECK (char_length(accelerator_id) BETWEEN 1 AND 200);

ALTER TABLE runtime_vm_accelerator_posture
    ADD COLUMN asked_at       timestamptz,
    ADD COLUMN attestation_id bigint REFERENCES runtime_vm_attestations (id),
    ADD COLUMN boot_id        uuid,
    ADD COLUMN fresh_until    timestamptz,
    ADD COLUMN device         text CHECK (char_length(device) = 64);
COMMENT ON COLUMN runtime_vm_accelerator_posture.asked_at IS
    'since when it is asked for evidence; NULL: a person or a scenario says what it is';
COMMENT ON COLUMN runtime_vm_accelerator_posture.device IS
    'SHA-256 of the key the device was born with: the accelerator stays that device';
CREATE INDEX accelerators_by_device
    ON runtime_vm_accelerator_posture (device) WHERE device IS NOT NULL;
