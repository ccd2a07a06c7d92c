"""The makers' root certificates, as they come with this package."""

from collections.abc import Callable
from functools import cache
from importlib import resources

from trustfabric.domain.evidence.anchors import AMD_PRODUCTS, AmdRoots, Anchors
from trustfabric.domain.evidence.certificate import pem_bodies

ANCHOR_FILES = (
    *(
        f"amd_{product.lower()}_{role}.pem"
        for product in AMD_PRODUCTS
        for role in ("ark", "ask", "asvk")
    ),
    "intel_sgx_root_ca.pem",
    "nvidia_device_identity_ca.pem",
)
"""The names that `anchors_from` asks for."""


@cache
def packaged_anchors() -> Anchors:
    folder = resources.files("trustfabric.domain.evidence") / "roots"
    return anchors_from(lambda name: (folder / name).read_bytes())


def anchors_from(read: Callable[[str], bytes]) -> Anchors:
    """Build anchors from files named as in this package's `roots`.

    What `read` doesn't find (FileNotFoundError) is no anchor then; a file that
    holds no certificate is a Reject.
    """

    def certificate(name: str) -> bytes | None:
        try:
            return pem_bodies(read(name), name)[0]
        except FileNotFoundError:
            return None

    def roots(product: str) -> AmdRoots | None:
        ark, ask, asvk = (
            certificate(f"amd_{product.lower()}_{role}.pem")
            for role in ("ark", "ask", "asvk")
        )
        if ark is None:
            return None
        found = tuple(each for each in (ask, asvk) if each is not None)
        return AmdRoots(ark=ark, intermediates=found)

    amd = {product: roots(product) for product in AMD_PRODUCTS}
    return Anchors(
        amd={product: found for product, found in amd.items() if found is not None},
        intel=certificate("intel_sgx_root_ca.pem"),
        nvidia=certificate("nvidia_device_identity_ca.pem"),
    )
