"""Attestation results: who gets one, for which verdicts, and that they verify."""

import json
import secrets
import stat
import subprocess
from base64 import urlsafe_b64encode
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from tests.fix_runtime import Served, mcpctl
from tests.http.client import Caller
from tests.http.conftest import Meet, Still
from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.policy import AppraisalPolicy
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import Code, EvidenceKind

JWKS = "/.well-known/jwks.json"
MEASURED = {"name": "measurement", "result": "pass", "expected": "4d" * 48}
HARDWARE = {
    "kind": "amd-sev-snp",
    "policy": {"id": "prod", "version": 7},
    "code": "ok",
    "claims": {"signer": "VCEK"},
    "checks": [MEASURED],
    "advisories": [],
}


@dataclass(frozen=True)
class Verdict:
    """A row of an attestation, with all that stands around it."""

    vm: Still
    id: int = 0
    status: str = "trusted"
    lifecycle: str = "restored"
    seconds: float = 200.0

    def recorded(self, **changes: Any) -> "Verdict":
        """Record it, as the one writer does."""
        rows, vm = self.vm.runtime.rows, self.vm
        deadline = datetime.now(UTC) + timedelta(seconds=self.seconds)
        trusted = self.status == "trusted"
        kept = deadline if trusted else None
        ((number,),) = rows(
            "SELECT nextval(pg_get_serial_sequence('runtime_vm_attestations', 'id'))"
        )
        rows(
            """
            INSERT INTO attestation_challenges
                   (attestation_id, runtime_vm_instance_id, kind, purpose,
                    nonce_digest, issued_at, expires_at, used_at)
            VALUES (%s, %s, 'amd-sev-snp', 'manual', %s, now(),
                    now() + interval '1 min', now())
            """,
            number,
            vm.id,
            secrets.token_bytes(32),
        )
        rows(
            """
            INSERT INTO runtime_vm_attestations
                   (id, runtime_vm_instance_id, attestation_kind,
                    verification_status, freshness_expires_at)
            VALUES (%s, %s, 'amd-sev-snp', %s, %s)
            """,
            number,
            vm.id,
            self.status,
            kept,
        )
        # As if the dispatcher had seen it: else it writes here at the same time.
        seen = "no-playbook" if self.lifecycle == "quarantined" else "none"
        vm.move(
            self.lifecycle,
            self.status,
            freshness_deadline=kept,
            remediation_state=f"remediation:{seen}",
        )
        rows(
            """
            WITH saved AS (
                UPDATE runtime_vm_trust_registry
                   SET provenance = %s::jsonb, version = version + 1
                 WHERE runtime_vm_instance_id = %s
             RETURNING *
            )
            INSERT INTO runtime_vm_trust_history (
                   runtime_vm_instance_id, attestation_id, current_status,
                   current_lifecycle_state, transition_reason, remediation_state,
                   remediation_attempts, registry_version, actor, provenance)
            SELECT runtime_vm_instance_id, %s, attestation_status, lifecycle_state,
                   'attestation:ok', remediation_state, 0, version, 'test',
                   provenance
              FROM saved
            """,
            json.dumps(HARDWARE | changes),
            vm.id,
            number,
        )
        return replace(self, id=number)

    @property
    def path(self) -> str:
        return f"/api/attestation/{self.id}/ear"


@pytest.fixture
def verdict(vm: Still) -> Verdict:
    return Verdict(vm).recorded()


async def keys(anybody: Caller) -> jwt.PyJWKSet:
    answer = await anybody.call("GET", JWKS)
    assert answer.status == 200
    return jwt.PyJWKSet.from_dict(answer.json())


async def opened(token: str, anybody: Caller) -> dict[str, Any]:
    """Verify a result as a stranger would: by what we publish, and nothing else."""
    key = (await keys(anybody))[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(
        token, key, algorithms=["ES256"], options={"require": ["exp", "iat", "iss"]}
    )
    return claims


async def test_a_result_is_verified_through_the_served_keys(
    verdict: Verdict, alice: Caller, nobody: Caller, runtime: Served
) -> None:
    answer = (await alice.call("GET", verdict.path)).json()

    claims = await opened(answer["ear"], nobody)
    assert claims["iss"] == runtime.url
    assert claims["submods"] == {
        verdict.vm.name: {
            "ear.status": "affirming",
            "ear.trustworthiness-vector": {
                "configuration": 2,
                "executables": 3,
                "hardware": 2,
                "instance-identity": 2,
                "runtime-opaque": 2,
            },
            "ear.appraisal-policy-id": "policy:prod:7",
        }
    }
    assert answer["status"] == "affirming"
    assert answer["jwks_uri"] == runtime.url + JWKS


async def test_our_own_verifier_agrees(
    verdict: Verdict, alice: Caller, nobody: Caller
) -> None:
    binding = bytes(range(32))
    nonce = urlsafe_b64encode(binding).rstrip(b"=").decode()

    answer = (await alice.call("GET", f"{verdict.path}?nonce={nonce}")).json()
    served = (await nobody.call("GET", JWKS)).json()["keys"]
    jwk = next(key for key in served if key["kid"] == answer["kid"])
    appraisal = verify(
        EvidenceKind.EAR,
        json.dumps({"kind": "ear", "token": answer["ear"]}).encode(),
        expected=Expected(binding=binding),
        anchors=Anchors(keys=(EnrolledKey.from_jwk(jwk, "us"),)),
        policy=AppraisalPolicy(id="test", version=1),
        now=datetime.now(UTC),
    )

    assert appraisal.code is Code.OK, appraisal.notes()
    assert appraisal.claims["submodules"] == {verdict.vm.name: "affirming"}


@pytest.mark.parametrize(
    ("seconds", "longest"), [(10_000.0, 300), (100.0, 100), (30.0, 30)]
)
async def test_a_result_ends_with_the_verdict_s_freshness_and_soon(
    vm: Still, alice: Caller, nobody: Caller, seconds: float, longest: int
) -> None:
    verdict = Verdict(vm, seconds=seconds).recorded()

    token = (await alice.call("GET", verdict.path)).json()["ear"]

    claims = await opened(token, nobody)
    assert longest - 20 <= claims["exp"] - claims["iat"] <= longest


async def test_a_refused_verdict_has_a_result_that_says_so(
    vm: Still, alice: Caller, nobody: Caller
) -> None:
    refused = Verdict(vm, status="untrusted", lifecycle="quarantined")
    verdict = refused.recorded(code="signature-invalid", claims={}, checks=[])

    token = (await alice.call("GET", verdict.path)).json()["ear"]

    submodule = (await opened(token, nobody))["submods"][vm.name]
    assert submodule["ear.status"] == "contraindicated"
    assert submodule["ear.trustworthiness-vector"]["hardware"] == 99


async def test_a_simulated_vm_never_affirms_anything(
    vm: Still, alice: Caller, nobody: Caller
) -> None:
    verdict = Verdict(vm).recorded()
    vm.runtime.rows(
        "UPDATE runtime_vm_instances SET hypervisor_endpoint = 'test:///default'"
        " WHERE id = %s",
        vm.id,
    )

    token = (await alice.call("GET", verdict.path)).json()["ear"]

    assert (await opened(token, nobody))["submods"][vm.name]["ear.status"] == "none"


@pytest.mark.parametrize(
    "gone_by", ["stale", "later", "booted", "terminated", "quarantined"]
)
async def test_a_verdict_that_has_gone_by_has_no_result(
    vm: Still, alice: Caller, gone_by: str
) -> None:
    verdict = Verdict(vm, seconds=0.5 if gone_by == "stale" else 200.0).recorded()
    columns = {
        "booted": "boot_id = gen_random_uuid()",
        "terminated": "terminated_at = now()",
    }
    if gone_by == "later":
        Verdict(vm).recorded()
    elif gone_by == "quarantined":
        vm.move("quarantined", "trusted")
    elif gone_by in columns:
        vm.runtime.rows(
            f"UPDATE runtime_vm_instances SET {columns[gone_by]} WHERE id = %s", vm.id
        )

    (await alice.call("GET", verdict.path)).problem(409, "conflict")


async def test_s6_others_have_no_result_of_it(
    verdict: Verdict, bravo: Caller, nobody: Caller, meet: Meet
) -> None:
    viewer = meet("viewer", verdict.vm.runtime.newcomer())
    absent = Verdict(verdict.vm, id=2**60)

    theirs = (await bravo.call("GET", verdict.path)).problem(404, "not-found")
    none = (await bravo.call("GET", absent.path)).problem(404, "not-found")

    assert theirs["detail"].replace(str(verdict.id), "N") == none["detail"].replace(
        str(absent.id), "N"
    )
    (await viewer.call("GET", verdict.path)).problem(404, "not-found")
    (await nobody.call("GET", verdict.path)).problem(401, "unauthenticated")


@pytest.mark.parametrize("nonce", ["short", "x" * 89, "with%20blank12", "%00" * 8])
async def test_a_nonce_that_no_result_can_carry_is_refused(
    verdict: Verdict, alice: Caller, nonce: str
) -> None:
    answer = await alice.call("GET", f"{verdict.path}?nonce={nonce}")

    assert "nonce" in answer.problem(400, "malformed")["detail"]


async def test_a_rotated_key_signs_and_the_old_one_still_verifies(
    verdict: Verdict, alice: Caller, nobody: Caller, runtime: Served
) -> None:
    before = (await alice.call("GET", verdict.path)).json()
    directory = runtime.data_dir

    rotated = mcpctl({}, "attest", "rotate-key", "--data-dir", str(directory))
    assert rotated.wait(20) == 0
    after = (await alice.call("GET", verdict.path)).json()

    assert before["kid"] != after["kid"]
    for answer in (before, after):
        assert await opened(answer["ear"], nobody)
    key = directory / "ear-key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    served = (await nobody.call("GET", JWKS)).body
    assert b"PRIVATE" not in served
    assert all("d" not in key for key in json.loads(served)["keys"])


async def test_the_command_prints_the_token_alone(
    verdict: Verdict, nobody: Caller, alice: Caller, runtime: Served
) -> None:
    asked = mcpctl(
        {"MCP_HOST_URL": runtime.url, "MCP_HOST_TOKEN": alice.token or ""},
        "attest",
        "ear",
        str(verdict.id),
        "--nonce",
        "nonce-of-theirs",
        stdout=subprocess.PIPE,
    )
    output, _ = asked.communicate(timeout=20)

    claims = await opened(output.decode().strip(), nobody)
    assert asked.returncode == 0
    assert claims["eat_nonce"] == "nonce-of-theirs"
