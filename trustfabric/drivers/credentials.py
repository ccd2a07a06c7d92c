"""What drivers are handed in place of a secret's text."""

from typing import Protocol


class Secret(Protocol):
    """Hides its value from whoever doesn't ask; pydantic's SecretStr does."""

    def get_secret_value(self) -> str:
        """Return the text itself: never to be logged, stored or put in argv."""
