"""Rows to start a test from, written plainly: no rule of the product is used."""

from trustfabric.db.session import Connection

OWNER = 7


async def insert_owner(conn: Connection, owner: int = OWNER) -> int:
    await conn.execute(
        "INSERT INTO users (id) VALUES (%s) ON CONFLICT DO NOTHING", [owner]
    )
    return owner


async def insert_server(conn: Connection, owner: int = OWNER) -> int:
    await insert_owner(conn, owner)
    return await _id(
        conn,
        "INSERT INTO servers (owner_id, name) VALUES (%s, 'web') RETURNING id",
        [owner],
    )


async def insert_instance(conn: Connection, owner: int = OWNER) -> int:
    """Insert a running instance of a new server; nothing is known of its trust."""
    server = await insert_server(conn, owner)
    return await _id(
        conn,
        """
        INSERT INTO runtime_vm_instances
               (server_id, instance_id, driver, desired_state, power_state)
        VALUES (%(server)s, 'vm-' || %(server)s, 'libvirt', 'running', 'running')
        RETURNING id
        """,
        {"server": server},
    )


async def insert_trust(conn: Connection, instance: int) -> None:
    """Insert the first registry row of an instance, and its history row."""
    await conn.execute(
        """
        WITH registered AS (
            INSERT INTO runtime_vm_trust_registry (runtime_vm_instance_id)
            VALUES (%(instance)s)
        )
        INSERT INTO runtime_vm_trust_history (
               runtime_vm_instance_id, current_status, current_lifecycle_state,
               transition_reason, remediation_state, remediation_attempts,
               registry_version, actor)
        VALUES (%(instance)s, 'pending', 'suspect', 'provisioned',
                'remediation:none', 0, 1, 'test')
        """,
        {"instance": instance},
    )


async def insert_run(conn: Connection, instance: int) -> int:
    """Insert an approved run that waits to be claimed."""
    return await _id(
        conn,
        """
        INSERT INTO runtime_vm_remediation_runs (
               runtime_vm_instance_id, playbook, requested_by, playbook_snapshot,
               content_sha256)
        VALUES (%s, 'default-vm-remediation', 'test', '{}', repeat('0', 64))
        RETURNING id
        """,
        [instance],
    )


async def _id(conn: Connection, query: str, values: list[int] | dict[str, int]) -> int:
    row = await (await conn.execute(query.encode(), values)).fetchone()
    assert row is not None
    return int(row[0])
