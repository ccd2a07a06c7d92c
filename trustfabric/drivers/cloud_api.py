"""The cloud_api executor: requests to an API, their expectations, and polling.

    all steps as expected                       success
    an expectation not met, an answer too large execution-failure
    host, address, redirect or TLS refused,
    or the API says 401 or 403                  policy-denied
    a template that finds nothing, no secret    playbook-bug
    connection refused, no such host, cut off,
    408, 425, 429, 500, 502, 503, 504           dependency-unavailable, after retries
    a request or all of it takes too long       timeout

Only what is idempotent, or says so, is sent twice, unless it was never sent at all.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeAlias

from trustfabric.domain.cloud_spec import read_cloud
from trustfabric.domain.executors import Cancellation, Emit, ExitStatus, Job
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import RunId
from trustfabric.domain.pointers import MISSING
from trustfabric.drivers.attendance import Stopwatch
from trustfabric.drivers.cloud_calls import Calls, CloudSettings, KnownSecrets
from trustfabric.drivers.pinned import PinnedClient
from trustfabric.drivers.secrets import Masker, Secrets
from trustfabric.drivers.workplace import facts
from trustfabric.errors import InvalidError, NotFoundError

Outcome: TypeAlias = tuple[str, FailureReason | None]


class CloudExecutor:
    """Runs cloud_api playbooks; satisfies the Executor protocol."""

    def __init__(
        self,
        client: PinnedClient,
        secrets: Secrets,
        settings: CloudSettings | None = None,
    ) -> None:
        self._client = client
        self._secrets = secrets
        self._settings = settings or CloudSettings()

    async def execute(
        self, job: Job, emit: Emit, cancelled: Cancellation
    ) -> ExitStatus:
        """Make the job's calls to their end; its failures are values."""
        watch = Stopwatch()
        try:
            spec = read_cloud(job.spec)
            secrets = KnownSecrets(self._secrets, spec)
        except (InvalidError, NotFoundError) as error:
            return watch.ended(str(error), FailureReason.PLAYBOOK_BUG)
        masker = Masker([job.token, *secrets.values.values()])
        async with self._client.session() as session:
            calls = Calls(
                client=self._client,
                session=session,
                settings=self._settings,
                masker=masker,
                emit=emit,
                secrets=secrets,
                data={
                    **facts(job),
                    "payload": job.payload or {},
                    "metadata": job.metadata,
                    "response": MISSING,
                },
            )
            message, reason = await _until(calls.all(spec), spec.timeout_s, cancelled)
        return replace(
            watch.ended(masker.mask(message), reason),
            detail=calls.detail(),
            files=calls.files(),
        )

    async def reap(self, run_id: RunId) -> int:
        """Return 0: connections end with the process that held them."""
        del run_id
        return 0


async def _until(
    work: Coroutine[Any, Any, Outcome], timeout_s: float, cancelled: Cancellation
) -> Outcome:
    """Do the work to its end, its time, or the wish that it ends."""
    async with asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(work)
        wish = tasks.create_task(_set(cancelled))
        done, _ = await asyncio.wait(
            {calls, wish}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        wish.cancel()
        if calls in done:
            return calls.result()
        calls.cancel()
    note = "what was sent may have taken effect"
    if wish in done:
        return f"stopped on request; {note}", FailureReason.CANCELLED
    return f"stopped after {timeout_s:g} s; {note}", FailureReason.TIMEOUT


async def _set(cancelled: Cancellation) -> None:
    await cancelled.wait()
