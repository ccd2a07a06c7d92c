"""Which isolation tiers a libvirt can be asked for: one it can't have is refused."""

from collections.abc import Mapping
from typing import Final

from trustfabric.domain.vms import IsolationTier
from trustfabric.drivers.libvirt_connect import Uri
from trustfabric.drivers.libvirt_link import Link
from trustfabric.errors import UnsupportedError

_NEEDED: Final[Mapping[IsolationTier, int]] = {
    IsolationTier.SEV: 4_005_000,
    IsolationTier.SEV_ES: 4_005_000,
    IsolationTier.SEV_SNP: 10_005_000,
    IsolationTier.TDX: 11_006_000,
}
"""libvirt's version from which it knows the tier's launchSecurity."""


async def require_tier(link: Link, tier: IsolationTier, uri: Uri) -> None:
    """Raise UnsupportedError where a link's host can't do it; it is never lowered."""
    version: int | None = None
    if tier.confidential and not uri.simulated:
        version = await link.call("asking the version", lambda c: c.getLibVersion())
    check_tier(tier, uri.shown, version)


def check_tier(tier: IsolationTier, endpoint: str, version: int | None) -> None:
    """Raise UnsupportedError where it can't be had; no `version` only simulates."""
    if not tier.confidential:
        return
    if version is None:
        raise UnsupportedError(
            f"tier {tier}: {endpoint} only simulates VMs and isolates none"
        )
    if version < _NEEDED[tier]:
        raise UnsupportedError(
            f"tier {tier} needs libvirt {_dotted(_NEEDED[tier])} or newer, "
            f"{endpoint} has {_dotted(version)}"
        )


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
