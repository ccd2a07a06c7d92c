-- Which challenges came before a refresh was claimed: its verdict is of a later one.

ALTER TABLE evaluation_refresh_jobs
    ADD COLUMN asked_after bigint NOT NULL DEFAULT 0;

-- What a score depends on, beside trust (whose history notifies already), says so:
-- whoever keeps the scores listens, and reads the rows. The payload is a server's id.

CREATE FUNCTION notify_capability_input() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    server bigint;
BEGIN
    CASE TG_TABLE_NAME
    WHEN 'servers' THEN
        server := NEW.id;
    WHEN 'runtime_vm_accelerator_posture' THEN
        SELECT i.server_id INTO server FROM runtime_vm_instances i
         WHERE i.id = coalesce(NEW.runtime_vm_instance_id, OLD.runtime_vm_instance_id);
    ELSE
        server := coalesce(NEW.server_id, OLD.server_id);
    END CASE;
    PERFORM pg_notify('capability_inputs', server::text);
    RETURN NULL;
END $$;

CREATE TRIGGER certification_notifies
    AFTER INSERT OR UPDATE OR DELETE ON evaluation_certifications
    FOR EACH ROW EXECUTE FUNCTION notify_capability_input();
CREATE TRIGGER accelerator_notifies
    AFTER INSERT OR UPDATE OR DELETE ON runtime_vm_accelerator_posture
    FOR EACH ROW EXECUTE FUNCTION notify_capability_input();
CREATE TRIGGER instance_end_notifies
    AFTER UPDATE OF terminated_at ON runtime_vm_instances
    FOR EACH ROW WHEN (OLD.terminated_at IS DISTINCT FROM NEW.terminated_at)
    EXECUTE FUNCTION notify_capability_input();
CREATE TRIGGER server_notifies
    AFTER UPDATE OF config, released_at, deleted_at ON servers
    FOR EACH ROW WHEN (OLD.config IS DISTINCT FROM NEW.config
        OR OLD.released_at IS DISTINCT FROM NEW.released_at
        OR OLD.deleted_at IS DISTINCT FROM NEW.deleted_at)
    EXECUTE FUNCTION notify_capability_input();
