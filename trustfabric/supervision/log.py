"""The log of this package: one that fails does not hurt whoever has something to say.

A full disk or a closed pipe shall not keep a supervisor from its restarts.
"""

import structlog


class Log:
    """structlog's logger of one module; what it raises is dropped."""

    def __init__(self, name: str) -> None:
        self._log = structlog.get_logger(name)

    def warning(self, event: str, **fields: object) -> None:
        # not `suppress`, which takes its time: every kill passes here to its restart
        try:  # noqa: SIM105
            self._log.warning(event, **fields)
        except Exception:  # noqa: BLE001, S110  # there is no other place to tell it
            pass

    def error(self, event: str, **fields: object) -> None:
        try:  # noqa: SIM105
            self._log.error(event, **fields)
        except Exception:  # noqa: BLE001, S110
            pass

    def exception(self, event: str, **fields: object) -> None:
        self.error(event, exc_info=True, **fields)
