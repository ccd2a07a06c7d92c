"""What the settings make of a hypervisor's link."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from trustfabric.config.load import load_settings
from trustfabric.resources import _provisioner


@pytest.mark.parametrize(
    ("environ", "given"),
    [
        ({}, False),
        ({"LIBVIRT_USERNAME": "vm"}, False),
        ({"LIBVIRT_PASSWORD": "hunter2"}, True),
        ({"LIBVIRT_PASSWORD_FILE": "FILE"}, True),
        ({"VM_PROVISIONER_DRIVER": "http"}, False),
        ({"VM_PROVISIONER_DRIVER": "http", "VM_HYPERVISOR_TOKEN": "hunter2"}, True),
    ],
)
async def test_whether_a_secret_was_given_is_told_as_it_is(
    tmp_path: Path, environ: dict[str, str], *, given: bool
) -> None:
    pytest.importorskip("libvirt")
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    secret.chmod(0o600)
    settings = load_settings(
        {
            "TRUSTFABRIC_DATA_DIR": str(tmp_path),
            "VM_HYPERVISOR_ENDPOINT": "http://127.0.0.1:9",
            **{
                key: value.replace("FILE", str(secret))
                for key, value in environ.items()
            },
        }
    )

    async with AsyncExitStack() as stack:
        shown = _provisioner(settings, "tests", stack).credentials

    assert shown["secret_provided"] is given
    assert (shown["method"] == "none") is not given
    assert "hunter2" not in str(shown)
