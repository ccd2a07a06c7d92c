"""Every route that asks who comes, with an id that nobody has."""

NONE = 2**62

REGISTRY = f"/api/trust/registry/{NONE}"
PLAYBOOK = f"/api/trust/remediation/playbooks/{NONE}"
RUN = f"/api/trust/remediation/runs/{NONE}"
SERVER = f"/api/servers/{NONE}"
EVALUATION = f"/api/evaluations/{NONE}"
HOLDS = "/api/trust/holds"
TOKENS = "/api/attestation/tokens"
POLICIES = "/api/attestation/policies"
REFERENCES = "/api/attestation/references"

READS = (
    "/api/trust/registry",
    "/api/trust/registry/stream",
    REGISTRY,
    f"{REGISTRY}/history",
    f"{REGISTRY}/why",
    HOLDS,
    f"{HOLDS}/{NONE}",
    f"{HOLDS}/stream",
    "/api/trust/incidents",
    f"/api/trust/incidents/{NONE}",
    "/api/trust/remediation/breaker",
    "/api/trust/remediation/playbooks",
    PLAYBOOK,
    "/api/trust/remediation/runs",
    "/api/trust/remediation/stream",
    RUN,
    f"{RUN}/logs",
    f"{RUN}/artifacts",
    f"{RUN}/artifacts/{NONE}",
    "/api/servers",
    SERVER,
    f"{SERVER}/placement",
    f"{SERVER}/why",
    f"{SERVER}/vm",
    f"{SERVER}/vm/logs",
    f"{SERVER}/vm/logs/stream",
    "/api/session",
    "/api/system/actors",
    "/metrics",
    "/api/trust/lifecycle",
    "/api/evaluations",
    f"{EVALUATION}/status",
    f"{EVALUATION}/lineage",
    f"/api/intelligence/servers/{NONE}/scores",
    f"/api/attestation/{NONE}/ear",
    "/api/attestation",
    f"/api/attestation/{NONE}",
    f"/api/attestation/{NONE}/evidence",
    f"/api/attestation/{NONE}/case",
    TOKENS,
    POLICIES,
    f"{POLICIES}/{NONE}",
    REFERENCES,
    f"{REFERENCES}/{NONE}",
)

WRITES = (
    ("POST", f"{REGISTRY}/transition"),
    ("POST", f"{REGISTRY}/release"),
    ("POST", HOLDS),
    ("DELETE", f"{HOLDS}/{NONE}"),
    ("POST", "/api/trust/remediation/breaker/release"),
    ("POST", "/api/trust/remediation/playbooks"),
    ("PATCH", PLAYBOOK),
    ("DELETE", PLAYBOOK),
    ("POST", "/api/trust/remediation/runs"),
    ("POST", f"{RUN}/approval"),
    ("POST", f"{RUN}/cancel"),
    ("POST", f"{RUN}/retry"),
    ("POST", f"{RUN}/artifacts"),
    ("POST", "/api/servers"),
    ("DELETE", SERVER),
    ("POST", f"{SERVER}/start"),
    ("POST", f"{SERVER}/stop"),
    ("POST", f"{SERVER}/redeploy"),
    ("POST", f"{SERVER}/release"),
    ("POST", f"{SERVER}/vm/attest"),
    ("POST", "/api/system/actors/fabric/nobody/kill"),
    ("POST", TOKENS),
    ("DELETE", f"{TOKENS}/{NONE}"),
    ("POST", "/api/attestation/keys"),
    ("POST", POLICIES),
    ("POST", f"{POLICIES}/{NONE}/activate"),
    ("POST", f"{POLICIES}/{NONE}/deprecate"),
    ("POST", f"{POLICIES}/{NONE}/revoke"),
    ("POST", f"{POLICIES}/dry-run"),
    ("POST", REFERENCES),
    ("POST", f"{REFERENCES}/{NONE}/activate"),
    ("POST", f"{REFERENCES}/{NONE}/deprecate"),
    ("POST", f"{REFERENCES}/{NONE}/revoke"),
    ("POST", f"{REFERENCES}/dry-run"),
    ("PATCH", f"{EVALUATION}/status"),
    ("POST", f"{EVALUATION}/retry"),
)

ALL = (*(("GET", path) for path in READS), *WRITES)

WITH_BODY = tuple(
    (method, path)
    for method, path in (*WRITES, ("POST", "/api/session"))
    if method != "DELETE"
    and not path.endswith(
        ("/start", "/stop", "/redeploy", "/retry", "/attest", "/kill")
    )
)
"""Routes that read a document."""
