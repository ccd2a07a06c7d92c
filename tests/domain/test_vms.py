from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.vms import (
    ConsoleKind,
    ConsoleSource,
    GpuDevice,
    IsolationTier,
    NetworkTemplate,
    PowerChange,
    PowerState,
    VmSpec,
    VolumeTemplate,
    check_image_name,
    check_instance_name,
    fill_console,
    fill_volume,
    is_structural,
    power_after,
    vm_uuid,
)
from trustfabric.errors import (
    ConflictError,
    FabricError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

_S, _C = PowerState, PowerChange
_VOLUME = VolumeTemplate(path="/data/vm-1.qcow2")


def a_spec(
    *,
    name: str = "vm-1",
    image: str = "tiny",
    memory_mib: int = 64,
    vcpu_count: int = 1,
    volume: VolumeTemplate = _VOLUME,
    console: ConsoleSource | None = None,
) -> VmSpec:
    return VmSpec(
        name=name,
        uuid=UUID(int=1),
        instance_id=InstanceId(1),
        server_id=ServerId(1),
        owner=OwnerId(1),
        image=image,
        memory_mib=memory_mib,
        vcpu_count=vcpu_count,
        volume=volume,
        console=console or ConsoleSource(),
    )


@pytest.mark.parametrize("name", ["a", "vm-1", "0", "a" * 63])
def test_a_plain_name_is_taken(name: str) -> None:
    check_instance_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-x",
        "x-",
        "..",
        ".",
        "A",
        " lead",
        "a b",
        "a\n",
        "a\tb",
        "a/b",
        "../swtpm",
        'a"/><hostdev/>',
        "a\u202eb",
        "a" * 64,
        "vm;rm -rf /",
        "$(id)",
    ],
)
def test_a_name_that_could_be_anything_else_is_refused(name: str) -> None:
    with pytest.raises(InvalidError):
        check_instance_name(name)


@given(st.text())
def test_an_accepted_name_is_safe_everywhere(name: str) -> None:
    try:
        check_instance_name(name)
    except InvalidError:
        return
    assert name.isascii()
    assert name.replace("-", "").isalnum()
    assert not name.startswith("-")


@pytest.mark.parametrize("image", ["../etc/passwd", "/abs", "a..b", "", "A", "a/b"])
def test_an_image_is_a_name_and_never_a_path(image: str) -> None:
    with pytest.raises(InvalidError):
        check_image_name(image)


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        (_S.DEFINED, _C.STARTED, _S.RUNNING),
        (_S.UNKNOWN, _C.RESUMED, _S.RUNNING),
        (_S.RUNNING, _C.REBOOTED, _S.RUNNING),
        (_S.RUNNING, _C.PAUSED, _S.PAUSED),
        (_S.PAUSED, _C.RESUMED, _S.RUNNING),
        (_S.RUNNING, _C.SHUT_DOWN, _S.STOPPED),
        (_S.RUNNING, _C.DESTROYED, _S.STOPPED),
        (_S.RUNNING, _C.PANICKED, _S.CRASHED),
        (_S.RUNNING, _C.FAILED, _S.CRASHED),
        (_S.STOPPED, _C.UNDEFINED, _S.VANISHED),
    ],
)
def test_power_follows_events(
    before: PowerState, change: PowerChange, after: PowerState
) -> None:
    assert power_after(before, change) is after


def test_undefining_what_runs_leaves_it_running() -> None:
    assert power_after(_S.RUNNING, _C.UNDEFINED) is _S.RUNNING


def test_clearing_away_a_crashed_vm_leaves_it_crashed() -> None:
    assert power_after(_S.CRASHED, _C.DESTROYED) is _S.CRASHED


@given(st.sampled_from(PowerState), st.sampled_from(PowerChange))
def test_an_event_told_twice_changes_nothing_more(
    state: PowerState, change: PowerChange
) -> None:
    once = power_after(state, change)

    assert power_after(once, change) is once


def test_only_a_boot_makes_earlier_measurements_void() -> None:
    assert {c for c in PowerChange if c.new_boot} == {_C.STARTED, _C.REBOOTED}
    assert {c for c in PowerChange if c.crash} == {_C.PANICKED, _C.FAILED}


def test_an_unknown_vm_is_not_taken_to_run() -> None:
    assert not PowerState.UNKNOWN.active
    assert PowerState.PAUSED.active


def test_every_tier_but_standard_is_confidential() -> None:
    plain = [tier for tier in IsolationTier if not tier.confidential]

    assert plain == [IsolationTier.STANDARD]


def test_a_uuid_is_the_same_in_every_process_and_differs_between_runtimes() -> None:
    assert vm_uuid("a", "vm-1") == vm_uuid("a", "vm-1")
    assert vm_uuid("a", "vm-1") != vm_uuid("b", "vm-1")


def test_a_volume_is_filled_for_its_instance() -> None:
    template = VolumeTemplate(
        path="{data_dir}/{server_id}/{instance_id}.qcow2",
        base_image="/images/{image}.qcow2",
    )

    volume = fill_volume(
        template, data_dir="/d", server_id=ServerId(3), name="vm-1", image="tiny"
    )

    assert volume.path == "/d/3/vm-1.qcow2"
    assert volume.base_image == "/images/tiny.qcow2"


def test_what_fills_a_template_is_not_filled_again() -> None:
    volume = fill_volume(
        VolumeTemplate(),
        data_dir="/{instance_id}",
        server_id=ServerId(1),
        name="vm-1",
        image="tiny",
    )

    assert volume.path == "/{instance_id}/volumes/vm-1.qcow2"


@pytest.mark.parametrize(
    "path", ["relative", "/a/../b", "/a/{instance_id}", "/a\0b", ""]
)
def test_a_volume_that_is_no_plain_path_makes_no_spec(path: str) -> None:
    with pytest.raises(InvalidError):
        a_spec(volume=VolumeTemplate(path=path))
    with pytest.raises(InvalidError):
        a_spec(volume=VolumeTemplate(path="/ok", base_image=path))


@pytest.mark.parametrize(("memory", "vcpus"), [(0, 1), (64, 0), (-1, 1)])
def test_a_vm_without_memory_or_processor_makes_no_spec(
    memory: int, vcpus: int
) -> None:
    with pytest.raises(InvalidError):
        a_spec(memory_mib=memory, vcpu_count=vcpus)


def test_a_console_in_the_file_system_gets_its_path() -> None:
    console = fill_console(
        ConsoleSource(kind=ConsoleKind.FILE), data_dir="/d", name="vm-1"
    )

    assert console.path == "/d/consoles/vm-1.log"
    assert a_spec(console=console).console.path == "/d/consoles/vm-1.log"


def test_a_pty_needs_no_path() -> None:
    assert fill_console(ConsoleSource(), data_dir="/d", name="vm-1").path is None


def test_a_console_without_the_path_it_needs_makes_no_spec() -> None:
    with pytest.raises(InvalidError):
        a_spec(console=ConsoleSource(kind=ConsoleKind.UNIX))


@pytest.mark.parametrize(
    ("kind", "name", "bridge"),
    [("bridge", None, None), ("network", None, None), ("passthrough", "x", None)],
)
def test_a_network_names_what_its_type_needs(
    kind: str, name: str | None, bridge: str | None
) -> None:
    with pytest.raises(InvalidError):
        NetworkTemplate(type=kind, name=name, bridge=bridge)


def test_a_device_is_shown_as_lspci_does() -> None:
    assert str(GpuDevice(bus=0xA, slot=0x1F, function=7)) == "0000:0a:1f.7"


@pytest.mark.parametrize(
    ("error", "structural"),
    [
        (InvalidError("x"), True),
        (ConflictError("x"), True),
        (UnsupportedError("x"), True),
        (UnavailableError("x"), False),
        (NotFoundError("x"), False),
    ],
)
def test_only_what_retrying_cannot_mend_is_structural(
    error: FabricError,
    structural: bool,  # noqa: FBT001 - a table of cases
) -> None:
    assert is_structural(error) is structural
