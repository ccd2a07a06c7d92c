"""What becomes of mail that no actor handles: somebody always hears of it."""

from asyncio import CancelledError

from trustfabric.supervision.deadletters import DeadLetters
from trustfabric.supervision.errors import (
    ActorCrashedError,
    ActorDeadError,
    ActorKilledError,
    AskError,
    AskTimeoutError,
    MailboxFullError,
)
from trustfabric.supervision.exits import Exit, ExitKind, in_words
from trustfabric.supervision.log import Log
from trustfabric.supervision.mailbox import Envelope, is_stop

log = Log(__name__)


def refuse(envelope: Envelope, path: str, reason: str, letters: DeadLetters) -> None:
    """Send back what finds nobody there."""
    if is_stop(envelope):
        _resolve(envelope, value=False)
    else:
        _send_back(envelope, path, ActorDeadError(f"{path}: {reason}"), reason, letters)


def strand(envelope: Envelope, path: str, reason: str, letters: DeadLetters) -> None:
    """Send back what waited for an actor that has ended for good."""
    if is_stop(envelope):
        _resolve(envelope, value=True)
    else:
        refuse(envelope, path, reason, letters)


def bounce(envelope: Envelope, path: str, limit: int, letters: DeadLetters) -> None:
    """Send back what a full mailbox has no room for."""
    error = MailboxFullError(f"{path}: {limit} waiting")
    _send_back(envelope, path, error, "mailbox full", letters)


def answer_error(envelope: Envelope, path: str, error: BaseException) -> None:
    """Give the asker an error that is an answer; of a notice there is none to give."""
    if envelope.reply is not None:
        envelope.reply.reject(error)
        return
    message = type(envelope.message).__name__
    log.warning(
        "actor.notice_refused", path=path, message=message, error=in_words(error)
    )


def cleanup_failed(path: str, error: BaseException | None) -> None:
    """Tell of a bug in code that had been cancelled: nobody waits for its outcome."""
    if error is not None and not isinstance(error, CancelledError):
        log.error("actor.cleanup_failed", path=path, error=in_words(error))


def out_of_time(envelope: Envelope, path: str) -> None:
    """Tell an asker who still listens that its request was skipped."""
    if envelope.reply is not None:
        envelope.reply.reject(AskTimeoutError(f"{path}: not begun in time"))


def cut_short(envelope: Envelope, path: str, doom: Exit | None) -> None:
    """Tell the asker that the actor ends; a stop is answered once it has."""
    if envelope.reply is not None and not is_stop(envelope):
        envelope.reply.reject(_last_words(path, doom))


def _last_words(path: str, doom: Exit | None) -> AskError:
    if doom is None or doom.kind is not ExitKind.CRASHED:
        return ActorKilledError(f"{path} was ended; the outcome is unknown")
    error = ActorCrashedError(f"{path} crashed: {doom.reason}")
    error.__cause__ = doom.error
    return error


def _send_back(
    envelope: Envelope, path: str, error: AskError, reason: str, letters: DeadLetters
) -> None:
    if envelope.reply is not None:
        envelope.reply.reject(error)
    else:
        letters.add(path, envelope.message, reason)


def _resolve(envelope: Envelope, *, value: bool) -> None:
    if envelope.reply is not None:
        envelope.reply.resolve(value)
