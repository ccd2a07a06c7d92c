"""What benchmarks stand on: one durable PostgreSQL on disk, and databases in it."""

import itertools
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from trustfabric.db.binaries import find_binaries
from trustfabric.db.embedded import start_embedded
from trustfabric.db.migrate import migrate

TEMPLATE = "bench_template"

_SETTINGS = {
    "max_connections": "200",
    "track_commit_timestamp": "on",  # says when what a client sees was committed
}
"""The rest is what the product runs with, fsync above all."""

_SEED = """
INSERT INTO users (id) VALUES (1);
INSERT INTO servers (id, owner_id, name, status)
SELECT n, 1, 'server-' || n, 'running' FROM generate_series(1, {servers}) n;
INSERT INTO runtime_vm_instances
       (id, server_id, instance_id, driver, image, memory_mib, vcpu_count,
        attestation_policy, desired_state, power_state, runtime_owner)
SELECT n, 1 + n % {servers}, 'tf-' || n, 'libvirt', 'demo', 64, 1,
       'demo-software-tpm', {desired}, {power}, {runtime}
  FROM generate_series(1, {instances}) n;
INSERT INTO runtime_vm_trust_registry
       (runtime_vm_instance_id, attestation_status, lifecycle_state,
        freshness_deadline, provenance_ref, provenance)
SELECT n, 'trusted', 'restored', now() + interval '1 day', 'attestation:' || n,
       jsonb_build_object('kind', 'tpm', 'policy', 'demo-software-tpm', 'measurement',
                          encode(sha256(n::text::bytea), 'hex'))
  FROM generate_series(1, {instances}) n;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What a database holds; instances are dealt to the servers in turn."""

    instances: int
    servers: int = 50
    runtime: str = "elsewhere"
    """Whose instances they are: no other runtime acts on them."""
    desired: str = "running"


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmarks."""

    home: Path
    quick: bool
    cluster_url: str
    programs: Path
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def size(self, full: int, quick: int) -> int:
        """Choose how much is measured."""
        return quick if self.quick else full

    def folder(self) -> Path:
        """Make a folder that nobody else uses."""
        path = self.home / f"part-{next(self._numbers)}"
        path.mkdir()
        return path

    @asynccontextmanager
    async def database(self, seed: Seed) -> AsyncIterator[str]:
        """Make a migrated database with the seed's rows; dropped at the end."""
        name = sql.Identifier(f"bench_{secrets.token_hex(8)}")
        admin = await psycopg.AsyncConnection.connect(self.cluster_url, autocommit=True)
        async with admin:
            await admin.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    name, sql.Identifier(TEMPLATE)
                )
            )
            try:
                url = make_conninfo(
                    self.cluster_url, dbname=name.as_string().strip('"')
                )
                await _sow(url, seed)
                yield url
            finally:
                await admin.execute(
                    sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name)
                )


@asynccontextmanager
async def opened(home: Path, *, quick: bool) -> AsyncIterator[Bench]:
    """Start the cluster in `home` and make the template; stop it at the end."""
    server = await start_embedded(home / "postgres", settings=_SETTINGS)
    try:
        await _make_template(server.url)
        programs = find_binaries(home / "postgres" / "pg").folder
        yield Bench(home, quick, server.url, programs)
    finally:
        await server.stop()


async def _make_template(cluster_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(
        cluster_url, autocommit=True
    ) as conn:
        name = sql.Identifier(TEMPLATE)
        await conn.execute(sql.SQL("CREATE DATABASE {}").format(name))
    await migrate(make_conninfo(cluster_url, dbname=TEMPLATE))


async def _sow(url: str, seed: Seed) -> None:
    values = {
        "servers": seed.servers,
        "instances": seed.instances,
        "desired": seed.desired,
        "power": seed.desired,
        "runtime": seed.runtime,
    }
    filled = sql.SQL(_SEED).format(**{k: sql.Literal(v) for k, v in values.items()})
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute(filled)
        await conn.execute("VACUUM ANALYZE")
