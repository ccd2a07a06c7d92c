"""The makers' root certificates, as they come with this package."""

from collections.abc import Callable
from functools import cache
from importlib import resources

from trustfabric.domain.evidence.anchors import AMD_PRODUCTS, AmdRoots, Anchors
from trustfabric.domain.evidence.certificate import pem_bodies


@cache
def packaged_anchors() -> Anchors:
    folder = resources.files("trustfabric.domain.evidence") / "roots"
    return anchors_from(lambda name: (folder / name).read_bytes())


def anchors_from(read: Callable[[str], bytes]) -> Anchors:
    """Build anchors from files named as in this package's `roots`.

    OSError of `read` is the caller's; a file that holds no certificate is a Reject.
    """

    def certificate(name: str) -> bytes:
        return pem_bodies(read(name), name)[0]

    return Anchors(
        amd={
            product: AmdRoots(
                ark=certificate(f"amd_{product.lower()}_ark.pem"),
                intermediates=(
                    certificate(f"amd_{product.lower()}_ask.pem"),
                    certificate(f"amd_{product.lower()}_asvk.pem"),
                ),
            )
            for product in AMD_PRODUCTS
        },
        intel=certificate("intel_sgx_root_ca.pem"),
        nvidia=certificate("nvidia_device_identity_ca.pem"),
    )
