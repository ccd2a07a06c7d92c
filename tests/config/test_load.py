"""What the runtime makes of its environment."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.environ import VARIABLES, fault, faults
from trustfabric.config import Settings, load_settings
from trustfabric.errors import ConfigError

PACKAGE = Path(__file__).parents[2] / "trustfabric"


def test_nothing_has_to_be_set() -> None:
    settings = load_settings({"HOME": "/home/ops"})

    assert settings.data_dir == Path("/home/ops/.local/state/trustfabric")
    assert settings.database.url is None
    assert settings.libvirt.uri == "test:///default"
    assert (settings.http.bind_address, settings.http.bind_port) == ("127.0.0.1", 3000)
    assert settings.warnings == ()


def test_the_defaults_are_the_safe_ones() -> None:
    settings = load_settings({})

    assert settings.attestation.policy == "default"
    assert not settings.remediation.requester_may_approve
    assert not settings.executor.unsandboxed
    assert settings.executor.user == "nobody"
    assert settings.executor.allowed_hosts == ()
    assert not settings.chaos.enabled
    assert settings.http.on_loopback


def test_an_empty_value_counts_as_not_set() -> None:
    empty = {variable.name: "" for variable in VARIABLES}

    assert load_settings(empty) == load_settings({})


def test_a_flag_wins_over_its_variable() -> None:
    environ = {"TRUSTFABRIC_DATA_DIR": "/srv/a"}

    settings = load_settings(environ, flags={"TRUSTFABRIC_DATA_DIR": "/srv/b"})

    assert settings.data_dir == Path("/srv/b")


def test_the_data_directory_follows_xdg() -> None:
    settings = load_settings({"HOME": "/home/ops", "XDG_STATE_HOME": "/state"})

    assert settings.data_dir == Path("/state/trustfabric")


def test_settings_cannot_be_changed() -> None:
    settings = load_settings({})

    with pytest.raises(ValueError, match="frozen"):
        settings.http.bind_port = 1  # type: ignore[misc]


def test_every_fault_of_every_variable_is_reported_at_once(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2")
    secret.chmod(0o644)
    environ = {
        "BIND_ADDRESS": "0.0.0.0",
        "BIND_PORT": "x",
        "JWT_SECRET": "short",
        "LIBVIRT_CONECTION_URI": "qemu:///system",
        "LIBVIRT_GPU_POLICY": '{"devices": [{"bsu": 1, "slot": "0x1f"}]}',
        "LIBVIRT_NETWORK_TEMPLATE": '{"nam": "x", "model": "virtioo"}',
        "LIBVIRT_PASSWORD_FILE": str(secret),
        "LIBVIRT_VOLUME_TEMPLATE": '{"path": "/etc/passwd"}',
        "VM_PROVISIONER_DRIVER": "http",
    }

    named = sorted(line.split(":")[0] for line in faults(environ))

    assert named == [
        "BIND_PORT",
        "JWT_SECRET",
        "LIBVIRT_CONECTION_URI",
        "LIBVIRT_GPU_POLICY",
        "LIBVIRT_GPU_POLICY",
        "LIBVIRT_NETWORK_TEMPLATE",
        "LIBVIRT_NETWORK_TEMPLATE",
        "LIBVIRT_PASSWORD_FILE",
        "LIBVIRT_VOLUME_TEMPLATE",
        "VM_HYPERVISOR_ENDPOINT",
    ]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BIND_ADDRESS", "example.org", 'is not an IP address or "localhost"'),
        ("BIND_PORT", "70000", '"70000" should be less than or equal to 65535'),
        ("CHAOS_ENABLED", "maybe", '"maybe" is not true or false'),
        ("DATABASE_POOL_SIZE", "0", "should be greater than or equal to 1"),
        ("DATABASE_URL", "mysql://a:hunter2@b/c", "is not a postgresql:// address"),
        ("EXECUTOR_ALLOWED_HOSTS", "a.b, c/d", '"c/d" is not a host name'),
        ("EXECUTOR_SECRETS_DIR", "/nowhere", '"/nowhere" is not a folder'),
        ("JWT_JWKS_FILE", "/nowhere", '"/nowhere" is not a file'),
        ("JWT_SECRET", "   ", "is blank"),
        ("LIBVIRT_CONNECTION_URI", "tset:///x", 'did you mean "test"?'),
        ("LIBVIRT_CONNECTION_URI", "qemu+shh://h/system", 'did you mean "ssh"?'),
        ("LIBVIRT_CONNECTION_URI", "qemu+ssh://a:hunter2@h/x", "holds a password"),
        ("LIBVIRT_CONNECTION_URI", "qemu", "is not a libvirt URI"),
        ("LIBVIRT_CONNECTION_URI", "xen:///system", "is not a libvirt URI"),
        ("LIBVIRT_CONNECTION_URI", "qemu:///system x", "a blank"),
        ("LIBVIRT_CONNECTION_URI", "qemu+ssh://host", "no path"),
        ("LIBVIRT_CONSOLE_SOURCE", "ptty", 'did you mean "pty"?'),
        ("LIBVIRT_CONSOLE_SOURCE", "pty:/dev/pts/0", "pty has no attribute"),
        ("LIBVIRT_CONSOLE_SOURCE", "tcp:80-90", '"80-90" is not a range of ports'),
        ("LIBVIRT_CONSOLE_SOURCE", "tcp:0.0.0.0", "is not a range of ports"),
        ("LIBVIRT_CONSOLE_SOURCE", "file:/run/libvirt/x", "has no {instance_id}"),
        ("LIBVIRT_CONSOLE_SOURCE", "file:/etc/{instance_id}", "is not in /"),
        ("LIBVIRT_CONSOLE_SOURCE", "unix:/run/libvirt/../{instance_id}", 'no ".."'),
        ("LIBVIRT_DEFAULT_ISOLATION_TIER", "snp", 'did you mean "sev-snp"?'),
        ("LIBVIRT_DEFAULT_MEMORY_MIB", "lots", '"lots" is not a whole number'),
        ("LIBVIRT_LOG_TAIL", "1.5", '"1.5" is not a whole number'),
        ("LIBVIRT_PASSWORD_FILE", "/nowhere", "No such file or directory"),
        ("LIBVIRT_VOLUME_ROOTS", "/a:b", '"b" is not an absolute path'),
        ("QUARANTINE_ACTION", "kill", "is not one of none, pause, stop"),
        ("REMEDIATION_BREAKER_PERCENT", "120", "less than or equal to 100"),
        ("REMEDIATION_RETRY_MAX_SECONDS", "1", "is below REMEDIATION_RETRY_BASE"),
        ("SCHEDULER_TICK_SECONDS", "nan", "is not a number"),
        ("SCHEDULER_TICK_SECONDS", "0", "should be greater than 0"),
        ("TRUSTFABRIC_PUBLIC_URL", "example.org", "is not an http:// or https://"),
        ("TRUSTFABRIC_PUBLIC_URL", "http://a:b@c", "holds credentials"),
        ("VM_ATTESTATION_MEASUREMENTS", "abcd", '"abcd" is not a digest'),
        ("VM_ATTESTATION_POLICY", "/nowhere", "nor a readable file"),
        ("VM_ATTESTATION_TRUST_ROOTS", "/nowhere", "is not a folder"),
        ("VM_ATTESTATION_COLLATERAL", "/nowhere", '"/nowhere" is not a folder'),
        ("VM_ATTESTATION_COLLATERAL", ".", '"." is not an absolute path'),
        ("VM_PROVISIONER_DRIVER", "libvirtd", 'did you mean "libvirt"?'),
    ],
)
def test_a_wrong_value_is_named_with_its_fault(
    name: str, value: str, said: str
) -> None:
    line = fault({name: value})

    assert line.startswith(f"{name}: ")
    assert said in line
    assert "hunter2" not in line


@pytest.mark.parametrize("content", ["not json", "[]"])
def test_a_policy_file_must_hold_a_json_object(tmp_path: Path, content: str) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(content)

    assert "JSON" in fault({"VM_ATTESTATION_POLICY": str(policy)})


def test_a_misspelt_variable_is_a_fault() -> None:
    line = fault({"VM_ATTESTATION_MEASUREMENT": "00"})

    assert line == (
        "VM_ATTESTATION_MEASUREMENT: unknown variable "
        "(did you mean VM_ATTESTATION_MEASUREMENTS?)"
    )


def test_other_programs_variables_are_left_alone() -> None:
    foreign = {
        "LIBVIRT_DEBUG": "1",
        "LIBVIRT_LOG_FILTERS": "1:qemu",
        "LOGNAME": "ops",
        "DATABASE_HOST": "db",
        "PATH": "/bin",
    }

    assert load_settings(foreign) == load_settings({})


@given(
    st.dictionaries(
        st.sampled_from([variable.name for variable in VARIABLES]),
        st.text(max_size=40).filter(lambda text: "\0" not in text),
        max_size=6,
    )
)
def test_any_environment_gives_settings_or_faults(environ: dict[str, str]) -> None:
    try:
        settings = load_settings(environ)
    except ConfigError as error:
        assert str(error)  # noqa: PT017
    else:
        assert isinstance(settings, Settings)


def test_only_config_reads_the_environment() -> None:
    readers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv", "environb")
    }

    # Scenarios hand it on, unread, to the processes that they start.
    assert readers <= {"config", "scenarios"}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:hun%ter2@db/fabric",
        "postgresql://app:hunter2@work@db/fabric",
    ],
)
def test_a_password_that_is_not_escaped_is_refused_without_being_told(
    url: str,
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"DATABASE_URL": url})

    assert "DATABASE_URL" in str(caught.value)
    assert "hun" not in str(caught.value)


def test_what_runs_guests_is_found_out_unless_it_is_said() -> None:
    assert load_settings({}).libvirt.virt_type == "auto"
    said = load_settings({"LIBVIRT_VIRT_TYPE": "qemu"})
    assert said.libvirt.virt_type == "qemu"
    assert "LIBVIRT_VIRT_TYPE" in fault({"LIBVIRT_VIRT_TYPE": "xen"})
