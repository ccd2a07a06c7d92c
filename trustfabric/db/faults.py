"""What psycopg raises, translated into this package's errors.

    connection lost, server down, full or read-only   → UnavailableError
    deadlock, lost race, lock not had in time         → ContentionError
    the answer to a COMMIT was lost                   → CommitUnknownError
    a constraint of `CONSTRAINTS`                     → the error it stands for

Everything else psycopg raises is a bug of ours and passes unchanged.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors as pg

from trustfabric.errors import (
    ConflictError,
    DuplicateKeyError,
    FabricError,
    NotFoundError,
    RunActiveError,
    UnavailableError,
)


class ContentionError(UnavailableError):
    """Another transaction was in the way; nothing was written: read and try again."""


class CommitUnknownError(UnavailableError):
    """The connection was lost while committing: written or not, nobody said.

    Look for what would have been written (a history row of that version) before
    doing it again.
    """

    def __init__(self) -> None:
        super().__init__(
            "the database was lost during a commit; the change may have been made",
            outcome="unknown",
        )


CONSTRAINTS: dict[str, Callable[[], FabricError]] = {
    "one_active_run": lambda: RunActiveError(
        "the instance already has a run that is pending or running"
    ),
    "playbook_key_per_owner": lambda: DuplicateKeyError(
        "the owner already has a playbook with this key"
    ),
    "instance_name": lambda: DuplicateKeyError(
        "an instance of this name already exists"
    ),
    "user_email": lambda: DuplicateKeyError("another user has this email"),
    "approval_per_user": lambda: ConflictError(
        "this person has already decided on the run"
    ),
    "one_active_refresh": lambda: ConflictError(
        "the certification already has a refresh job"
    ),
    "idempotency_key": lambda: ConflictError("the idempotency key is in use"),
    "history_version": lambda: ContentionError(
        "another writer changed the instance's trust first"
    ),
    "run_event_seq": lambda: ContentionError("another writer logs for the run"),
    "servers_owner_id_fkey": lambda: NotFoundError("no such owner"),
    "runtime_vm_instances_server_id_fkey": lambda: NotFoundError("no such server"),
    "runtime_vm_remediation_runs_runtime_vm_instance_id_fkey": lambda: NotFoundError(
        "no such instance"
    ),
    "runtime_vm_remediation_runs_assigned_owner_id_fkey": lambda: NotFoundError(
        "no such owner"
    ),
    "runtime_vm_remediation_playbooks_owner_id_fkey": lambda: NotFoundError(
        "no such owner"
    ),
    "one_active_policy": lambda: ConflictError(
        "another policy is active for this owner, image and tier: deprecate it first"
    ),
    "attestation_documents_owner_id_fkey": lambda: NotFoundError("no such owner"),
    "trust_holds_runtime_vm_instance_id_fkey": lambda: NotFoundError(
        "no such instance"
    ),
    "trust_holds_owner_id_fkey": lambda: NotFoundError("no such owner"),
}

_CONTENTION = (
    pg.SerializationFailure,
    pg.DeadlockDetected,
    pg.LockNotAvailable,
    pg.IdleInTransactionSessionTimeout,  # we were stopped, and rolled back meanwhile
)

_GONE = (psycopg.OperationalError, pg.TransactionTimeout)


def translate(error: psycopg.Error) -> FabricError | None:
    """Return the error that callers are to see, or None where `error` is a bug.

    What PostgreSQL said stays in its cause, for the log: callers may be strangers.
    """
    if isinstance(error, _CONTENTION):
        return ContentionError("others were changing the same: try again")
    if isinstance(error, psycopg.IntegrityError):
        named = CONSTRAINTS.get(error.diag.constraint_name or "")
        return named() if named else None
    if isinstance(error, _GONE):
        return UnavailableError("the database is not available")
    return None


def connection_lost(error: psycopg.Error) -> bool:
    """Whether `error` tells of the connection, so that another one may do."""
    return isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None
        or error.sqlstate.startswith("08")
        or isinstance(error, pg.AdminShutdown | pg.CrashShutdown | pg.CannotConnectNow)
    )


@contextmanager
def translated() -> Iterator[None]:
    """Raise this package's errors for psycopg's, from them."""
    try:
        yield
    except psycopg.Error as error:
        known = translate(error)
        if known is None:
            raise
        raise known from error


@contextmanager
def explained() -> Iterator[None]:
    """Raise UnavailableError with the server's own words: for an operator's eyes."""
    try:
        yield
    except psycopg.Error as error:
        words = str(error).strip() or type(error).__name__
        raise UnavailableError(f"the database is not available: {words}") from error
