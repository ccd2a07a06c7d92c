"""Guests whose agent is a few lines of Python, with a TPM of a few more."""

import base64
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from tests.domain.evidence.tpm_quotes import FakeTpm
from tests.fix_fabric import until
from tests.http.client import Answer, Caller, Json
from trustfabric.domain.evidence.tpm2 import write_document

CHALLENGES = "/api/attestation/challenges"
TOKENS = "/api/attestation/tokens"
ZERO, TAMPERED = bytes(32), b"\x66" * 32
AGENT = {"attestation": {"kind": "tpm", "source": "agent"}}


@dataclass
class Guest:
    """A VM whose agent is these few lines, with a TPM of a few more."""

    owner: Caller
    server: int
    id: int
    agent: Caller
    token_id: int
    tpm: FakeTpm = field(
        default_factory=lambda: FakeTpm(key=ec.generate_private_key(ec.SECP256R1()))
    )

    async def challenge(self, wait: int = 10) -> Json:
        answer = await self.agent.get(CHALLENGES, wait=wait)
        assert answer.status == 200, answer.body
        (asked,) = answer.json()
        document: Json = asked
        return document

    def quote(self, asked: Json, seventh: bytes = ZERO) -> bytes:
        values = dict.fromkeys(range(9), ZERO) | {7: seventh}
        attest = self.tpm.attest(values, nonce=bytes.fromhex(asked["extra_data"]))
        return write_document(attest, self.tpm.sign(attest), {"sha256": values})

    async def push(self, nonce: str, evidence: bytes) -> Answer:
        """Push as agents do: what was not taken because of another is sent again."""
        body = {"nonce": nonce, "evidence": base64.b64encode(evidence).decode()}

        async def send() -> Answer | None:
            answer = await self.agent.post(CHALLENGES, body)
            return None if answer.status == 429 else answer

        return await until(send, "the answer to be taken")

    async def answer(self, seventh: bytes = ZERO) -> Json:
        """Answer the next challenge as a guest does that is or isn't tampered with."""
        asked = await self.challenge()
        answer = await self.push(asked["nonce"], self.quote(asked, seventh))
        assert answer.status == 202, answer.body
        return asked

    async def enroll(self) -> None:
        public = base64.b64encode(self.tpm.public()).decode()
        body = {"runtime_vm_instance_id": self.id, "tpmt_public": public}
        assert (await self.owner.post("/api/attestation/keys", body)).status == 201

    async def posture(self) -> Json:
        document: Json = (await self.owner.get(f"/api/trust/registry/{self.id}")).json()
        return document

    async def until_posture(self, **wanted: Any) -> Json:
        async def look() -> Json | None:
            row = await self.posture()
            return row if wanted.items() <= row.items() else None

        return await until(look, f"{wanted}")

    async def until_code(self, code: str) -> Json:
        async def look() -> Json | None:
            found = await self.owner.get(
                "/api/attestation", runtime_vm_instance_id=self.id, limit=10
            )
            return next((row for row in found.json() if row["code"] == code), None)

        return await until(look, code)

    async def attest(self) -> None:
        path = f"/api/servers/{self.server}/vm/attest"
        assert (await self.owner.post(path)).status == 202


async def a_running(owner: Caller, **config: Any) -> tuple[int, int]:
    """Start a server; return its id and its VM's."""
    made = await owner.made("/api/servers", {"name": "web", "config": config or AGENT})
    path = f"/api/servers/{made['id']}"
    await owner.made(f"{path}/start")

    async def look() -> int | None:
        vm = (await owner.get(f"{path}/vm")).json()
        running = [one for one in vm["instances"] if one["power_state"] == "running"]
        return running[0]["id"] if running else None

    return made["id"], await until(look, "the VM to run")


async def issue(owner: Caller, instance: int, **more: Any) -> Json:
    return await owner.made(TOKENS, {"runtime_vm_instance_id": instance, **more})


async def a_guest(owner: Caller) -> Guest:
    server, instance = await a_running(owner)

    async def look() -> bool | None:
        row = (await owner.get(f"/api/trust/registry/{instance}")).json()
        return row["attestation_status"] == "unknown" or None

    await until(look, "its boot to be asked in vain")
    issued = await issue(owner, instance)
    agent = Caller(owner.runtime, owner.http, token=issued["token"])
    guest = Guest(owner, server, instance, agent, issued["id"])
    await guest.enroll()
    return guest
