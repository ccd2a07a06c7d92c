"""Identifiers, one type each, so that a checker refuses a mix-up."""

from typing import NewType

OwnerId = NewType("OwnerId", int)
"""A user, as the owner of servers (`users.id`, the token's `sub`)."""

ServerId = NewType("ServerId", int)
InstanceId = NewType("InstanceId", int)
"""`runtime_vm_instances.id`; the hypervisor's name for it is a text beside it."""

HistoryId = NewType("HistoryId", int)
AttestationId = NewType("AttestationId", int)
ChallengeId = NewType("ChallengeId", int)
PlaybookId = NewType("PlaybookId", int)
RunId = NewType("RunId", int)
HoldId = NewType("HoldId", int)
IncidentId = NewType("IncidentId", int)
