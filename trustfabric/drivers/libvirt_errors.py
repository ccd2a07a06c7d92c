"""libvirt's errors turned into ours, by code and domain, never by their text.

The text is translated to the host's language, so it only informs.
"""

from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

from trustfabric.errors import (
    ConflictError,
    FabricError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

INTERNAL_ERROR: Final = 1
NO_SUPPORT: Final = 3
NO_CONNECT: Final = 5
INVALID_CONN: Final = 6
INVALID_ARG: Final = 8
OPERATION_FAILED: Final = 9
XML_ERROR: Final = 27
XML_DETAIL: Final = 35
SYSTEM_ERROR: Final = 38
NO_DOMAIN: Final = 42
AUTH_FAILED: Final = 45
NO_STORAGE_POOL: Final = 49
NO_STORAGE_VOL: Final = 50
OPERATION_INVALID: Final = 55
CONFIG_UNSUPPORTED: Final = 67
AUTH_CANCELLED: Final = 79
NO_DOMAIN_METADATA: Final = 80
AUTH_UNAVAILABLE: Final = 94
XML_INVALID_SCHEMA: Final = 92

_LINK_DOMAINS: Final = frozenset({7, 13})
"""VIR_FROM_RPC and VIR_FROM_REMOTE."""
_LINK_CODES: Final = frozenset({INTERNAL_ERROR, SYSTEM_ERROR, NO_CONNECT, INVALID_CONN})
_CREDENTIAL_CODES: Final = frozenset({AUTH_FAILED, AUTH_CANCELLED, AUTH_UNAVAILABLE})
_CLASSES: Final = MappingProxyType(
    {
        NO_SUPPORT: UnsupportedError,
        CONFIG_UNSUPPORTED: UnsupportedError,
        INVALID_ARG: InvalidError,
        XML_ERROR: InvalidError,
        XML_DETAIL: InvalidError,
        XML_INVALID_SCHEMA: InvalidError,
        NO_STORAGE_POOL: InvalidError,
        NO_DOMAIN: NotFoundError,
        OPERATION_INVALID: ConflictError,
    }
)


def load_binding() -> Any:
    """Return libvirt-python, which is an extra of this package."""
    try:
        binding: Any = import_module("libvirt")
    except ImportError as error:
        raise UnsupportedError(
            "libvirt-python is missing: pip install 'trustfabric[libvirt]' "
            "(make install does it), or VM_PROVISIONER_DRIVER=http"
        ) from error
    binding.registerErrorHandler(_stay_silent, None)
    return binding


def translate(error: Any, doing: str) -> FabricError:
    """Return our error for a `libvirtError` that `doing` met."""
    code, domain = error.get_error_code(), error.get_error_domain()
    facts = {"libvirt_code": code, "libvirt_domain": domain}
    text = f"{doing}: {error.get_error_message()}"
    if code in _CREDENTIAL_CODES:
        return UnavailableError(text, cause="credentials", **facts)
    return _CLASSES.get(code, UnavailableError)(text, **facts)


def is_link_loss(error: Any) -> bool:
    """Tell whether the connection itself broke, not what it was asked."""
    return (
        error.get_error_domain() in _LINK_DOMAINS
        and error.get_error_code() in _LINK_CODES
    )


def _stay_silent(_context: object, _error: object) -> None:
    """Keep libvirt off stderr: every error comes as an exception too."""
