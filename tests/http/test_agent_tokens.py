"""How many agents' tokens of one instance may be good at the same time."""

from tests.http.guests import TOKENS, Guest, issue
from trustfabric.http.agents import MOST_TOKENS


async def test_a_token_too_many_is_refused_until_one_is_revoked(guest: Guest) -> None:
    for _ in range(MOST_TOKENS - 1):
        await issue(guest.owner, guest.id)
    body = {"runtime_vm_instance_id": guest.id}

    refused = await guest.owner.post(TOKENS, body)
    await guest.owner.call("DELETE", f"{TOKENS}/{guest.token_id}")
    issued = await guest.owner.post(TOKENS, body)

    assert f"{MOST_TOKENS} tokens" in refused.problem(409, "conflict")["detail"]
    assert issued.status == 201
