"""What an asker may be told instead of an answer.

AskError                     an ask that got no answer
├── ActorDeadError           not running and not coming back (also pykka's)
├── ActorCrashedError        the handler had a bug; the work may be half done
├── ActorKilledError         killed with the message in hand; outcome unknown
├── AskTimeoutError          no answer before the deadline (also pykka.Timeout)
├── MailboxFullError         the receiver is behind; try later
└── WouldDeadlockError       waiting here would stop the event loop
    └── AskCycleError        the asked actor waits, directly or not, for the asker
GaveUpError                  a supervisor's restarts exceeded its intensity
"""

import pykka


class AskError(Exception):
    """An ask that got no answer; the message says whose and why."""


class ActorDeadError(AskError, pykka.ActorDeadError):
    """The actor is not running and is not coming back."""


class ActorCrashedError(AskError):
    """The handler raised what is no answer; `__cause__` is that exception."""


class ActorKilledError(AskError):
    """The actor was killed with the message in hand; its effect may have happened."""


class AskTimeoutError(AskError, pykka.Timeout, TimeoutError):
    """The deadline passed first; work not begun by then is skipped."""


class MailboxFullError(AskError):
    """The receiver's mailbox is at its bound."""


class WouldDeadlockError(AskError):
    """Blocking on the event loop's own thread would wait for itself."""


class AskCycleError(WouldDeadlockError):
    """The chain of asks leads back to the asker; the message names it."""


class GaveUpError(Exception):
    """A supervisor restarted more often than its intensity allows."""
