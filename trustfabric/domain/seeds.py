"""What cloud-init is given at a VM's first boot: the three documents of NoCloud.

They often hold passwords and keys, so no view, log or repr shows them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trustfabric.errors import InvalidError

USER_DATA_MAX: Final = 64 << 10
"""Characters; clouds take 16 to 64 KiB."""
NETWORK_MAX: Final = 16 << 10
META_MAX: Final = 16 << 10
MASK: Final = "***"
_KEY: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_HEADERS: Final = (
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template: jinja",
    "Content-Type: multipart/",
    "MIME-Version:",
)
"""What cloud-init knows a document by; one that begins otherwise is left out."""


@dataclass(frozen=True, slots=True)
class Seed:
    """Checked when it is made. InvalidError names the field at fault."""

    user_data: str = field(repr=False)
    meta_data: Mapping[str, str] = field(default_factory=dict, repr=False)
    network_config: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_text("user_data", self.user_data, USER_DATA_MAX)
        if not self.user_data.startswith(_HEADERS):
            raise _fault("user_data", f"begins with none of {', '.join(_HEADERS)}")
        if self.network_config is not None:
            _check_text("network_config", self.network_config, NETWORK_MAX)
            if "version:" not in self.network_config:
                raise _fault("network_config", "names no version")
        for key in self.meta_data:
            if _KEY.fullmatch(key) is None:
                raise _fault("meta_data", f"{key[:64]!r} is not a plain name")
            if key == "instance-id":
                raise _fault("meta_data", "instance-id is ours to give")
        _check_text("meta_data", json.dumps(dict(self.meta_data)), META_MAX)

    def files(self, name: str) -> Mapping[str, bytes]:
        """Return the documents of an instance by file name."""
        meta = {"local-hostname": name, **self.meta_data, "instance-id": name}
        texts = {"user-data": self.user_data, "meta-data": json.dumps(meta)}
        if self.network_config is not None:
            texts["network-config"] = self.network_config
        return {file: text.encode() for file, text in texts.items()}


def read_seed(vm: Mapping[str, Any]) -> Seed | None:
    """Return the seed of a server's `vm` configuration, None where it has none."""
    given = vm.get("cloud_init")
    if given is None:
        return None
    return Seed(
        given["user_data"],
        given.get("meta_data") or {},
        given.get("network_config"),
    )


def without_seed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a server's configuration for people: that there is a seed, not what."""
    vm = config.get("vm") or {}
    seed = vm.get("cloud_init")
    if seed is None:
        return config
    return {**config, "vm": {**vm, "cloud_init": dict.fromkeys(seed, MASK)}}


def _check_text(name: str, text: str, most: int) -> None:
    if "\0" in text:
        raise _fault(name, "holds a NUL")
    if len(text.encode()) > most:
        raise _fault(name, f"is longer than {most} bytes")


def _fault(name: str, what: str) -> InvalidError:
    return InvalidError(f"config.vm.cloud_init.{name}: {what}")
