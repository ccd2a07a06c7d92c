"""The JSON templates of network, disk and GPUs."""

import json
from pathlib import Path

import pytest

from tests.config.environ import fault
from trustfabric.config import load_settings


def template(name: str, /, **keys: object) -> dict[str, str]:
    return {f"LIBVIRT_{name}": json.dumps(keys)}


def test_keys_left_out_of_a_template_keep_their_default() -> None:
    settings = load_settings(
        template("VOLUME_TEMPLATE", path="{data_dir}/volumes/x.raw", driver="raw")
    )

    assert settings.libvirt.volume.driver == "raw"
    assert settings.libvirt.volume.target_dev == "vda"


def test_a_bridge_makes_the_network_one() -> None:
    network = load_settings(template("NETWORK_TEMPLATE", bridge="br0")).libvirt.network

    assert (network.type, network.bridge, network.name) == ("bridge", "br0", None)


def test_the_default_network_is_libvirts() -> None:
    network = load_settings({}).libvirt.network

    assert (network.type, network.name, network.model) == (
        "network",
        "default",
        "virtio",
    )


def test_a_disk_path_is_filled_in(tmp_path: Path) -> None:
    volume = load_settings({}).libvirt.volume

    assert volume.path_for(tmp_path, "vm-1", "7") == tmp_path / "volumes/vm-1.qcow2"


def test_an_overlay_may_be_of_the_image_that_a_vm_is_made_from(tmp_path: Path) -> None:
    base = "/var/lib/libvirt/images/{image}.qcow2"

    volume = load_settings(template("VOLUME_TEMPLATE", base_image=base)).libvirt.volume

    assert volume.base_image == base


def test_a_mac_address_is_written_as_libvirt_writes_it() -> None:
    mac = "52:54:00:AB:CD:EF"

    network = load_settings(template("NETWORK_TEMPLATE", mac=mac)).libvirt.network

    assert network.mac == "52:54:00:ab:cd:ef"


def test_pci_numbers_are_hexadecimal_where_they_are_strings() -> None:
    gpu = load_settings(
        template("GPU_POLICY", enabled=True, devices=[{"bus": "0x0a", "slot": "1f"}])
    ).libvirt.gpu

    assert gpu.devices[0].address == "0000:0a:1f.0"


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("NETWORK_TEMPLATE", {"nam": "x"}, '$.nam: unknown key (did you mean "name"?)'),
        ("NETWORK_TEMPLATE", {"model": "virtioo"}, 'did you mean "virtio"?'),
        ("NETWORK_TEMPLATE", {"mtu": True}, "$.mtu: true is not a whole number"),
        ("NETWORK_TEMPLATE", {"mtu": "9000"}, '$.mtu: "9000" is not a whole number'),
        ("NETWORK_TEMPLATE", {"mtu": 10}, "greater than or equal to 576"),
        ("NETWORK_TEMPLATE", {"mac": "01:00:00:00:00:00"}, "unicast MAC"),
        ("NETWORK_TEMPLATE", {"name": 'x"/><hostdev'}, "plain name"),
        ("NETWORK_TEMPLATE", {"type": "bridge"}, "needs the key bridge"),
        ("NETWORK_TEMPLATE", {"type": "user", "name": "x"}, "does not go with"),
        ("NETWORK_TEMPLATE", {"type": "user", "bridge": "x"}, "does not go with"),
        ("NETWORK_TEMPLATE", {"type": "user", "mtu": 1400}, "key mtu does not go with"),
        (
            "NETWORK_TEMPLATE",
            {"type": "user", "filterref": "clean-traffic"},
            "key filterref does not go with",
        ),
        ("VOLUME_TEMPLATE", {"target_bus": "ide"}, '"ide" is not one of'),
        (
            "VOLUME_TEMPLATE",
            {"target_bus": "sata", "readonly": True},
            "key readonly does not go with",
        ),
        ("VOLUME_TEMPLATE", {"path": "relative"}, "begins with / or {data_dir}/"),
        ("VOLUME_TEMPLATE", {"path": "/a/../b"}, 'has no ".."'),
        ("VOLUME_TEMPLATE", {"path": "/a/<b>"}, "markup"),
        ("VOLUME_TEMPLATE", {"path": "/a/{vm}"}, "{vm} is not one of"),
        ("VOLUME_TEMPLATE", {"path": "/etc/shadow"}, "is not in /"),
        ("VOLUME_TEMPLATE", {"base_image": "/etc/x"}, "$.base_image: /etc/x is not in"),
        ("VOLUME_TEMPLATE", {"target_dev": "vda1"}, "a disk name"),
        (
            "VOLUME_TEMPLATE",
            {"base_image": "{data_dir}/base.img", "driver": "raw"},
            'key base_image does not go with driver "raw"',
        ),
        (
            "VOLUME_TEMPLATE",
            {"path": "{data_dir}/one.qcow2", "size_gib": 1},
            "VMs would share it",
        ),
        (
            "VOLUME_TEMPLATE",
            {"path": "/a/{instance_id}/disk", "size_gib": 1, "pool": "images"},
            "VMs would share it",
        ),
        ("VOLUME_TEMPLATE", {"io": "native"}, "needs cache"),
        ("VOLUME_TEMPLATE", {"readonly": "yes"}, "is not true or false"),
        ("VOLUME_TEMPLATE", {"size_gib": 0}, "greater than or equal to 1"),
        ("GPU_POLICY", {"enabled": True}, "enabled without any devices"),
        ("GPU_POLICY", {"devices": {}}, "is not a list"),
        (
            "GPU_POLICY",
            {"devices": [{"bus": 1, "slot": 1, "attestation": "tpm"}]},
            "$.devices[0].attestation",
        ),
        ("GPU_POLICY", {"devices": [{"slot": 1}]}, "$.devices[0].bus: is required"),
        (
            "GPU_POLICY",
            {"devices": [{"bus": 1, "slot": "zz"}]},
            '"zz" is not a hexadecimal number',
        ),
        ("GPU_POLICY", {"devices": [{"bus": 1, "slot": 32}]}, "less than or equal"),
        ("GPU_POLICY", {"devices": [{"bus": 1, "slot": 1}] * 2}, "is named twice"),
        (
            "GPU_POLICY",
            {"devices": [{"bus": 1, "slot": 1, "fnction": 0}]},
            '$.devices[0].fnction: unknown key (did you mean "function"?)',
        ),
    ],
)
def test_a_wrong_key_of_a_template_is_named(
    name: str, keys: dict[str, object], said: str
) -> None:
    line = fault(template(name, **keys))

    assert line.startswith(f"LIBVIRT_{name}: ")
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        ('{"name":"a","name":"b"}', 'key "name" comes twice'),
        ("[" * 100_000, "is not JSON"),
        ('{"name":"\\ud800"}', "is not JSON"),
    ],
)
def test_a_template_that_is_no_object_is_refused(text: str, said: str) -> None:
    assert said in fault({"LIBVIRT_NETWORK_TEMPLATE": text})


def test_a_snp_launch_is_read_whole() -> None:
    snp = load_settings(
        template(
            "SNP_TEMPLATE",
            cpu_model="EPYC-Milan",
            firmware="{data_dir}/fw.fd",
            kernel="/boot/vmlinuz",
            cmdline="quiet",
        )
    ).libvirt.snp

    assert (snp.cpu_model, snp.firmware) == ("EPYC-Milan", "{data_dir}/fw.fd")
    assert load_settings({}).libvirt.snp.cpu_model == "EPYC-v4"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"frmware": "/x"}, 'did you mean "firmware"?'),
        ({"firmware": "fw.fd"}, "begins with /"),
        ({"firmware": "/a/../b"}, '".."'),
        ({"firmware": "/{instance_id}.fd"}, "{instance_id}"),
        ({"cmdline": "quiet"}, "need a kernel"),
        ({"kernel": "/k"}, "needs a firmware"),
        ({"firmware": "/f", "kernel": "/k", "cmdline": "a\nb"}, "printable"),
    ],
)
def test_a_snp_launch_with_a_fault_is_named(keys: dict[str, str], said: str) -> None:
    assert said in fault(template("SNP_TEMPLATE", **keys))
