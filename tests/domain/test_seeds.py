"""What cloud-init is given: checked when a server is made, shown to nobody."""

import json

import pytest

from trustfabric.domain.seeds import (
    META_MAX,
    NETWORK_MAX,
    USER_DATA_MAX,
    Seed,
    read_seed,
    without_seed,
)
from trustfabric.errors import InvalidError

SECRET = "hunter2"
USER_DATA = f"#cloud-config\npassword: {SECRET}\n"


def test_a_seed_becomes_the_documents_of_its_instance() -> None:
    seed = Seed(USER_DATA, {"local-hostname": "web", "region": "x"}, "version: 2\n")

    files = seed.files("tf-1")

    assert files["user-data"] == USER_DATA.encode()
    assert files["network-config"] == b"version: 2\n"
    meta = json.loads(files["meta-data"])
    assert meta == {"instance-id": "tf-1", "local-hostname": "web", "region": "x"}


def test_without_a_network_there_is_no_document_of_one() -> None:
    assert set(Seed("#!/bin/sh\n").files("tf-1")) == {"user-data", "meta-data"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"user_data": "hello"}, "user_data: begins with none of #cloud-config"),
        ({"user_data": "#!/bin/sh\0"}, "user_data: holds a NUL"),
        ({"user_data": "#!" + "é" * (USER_DATA_MAX // 2)}, "user_data: is longer"),
        (
            {"user_data": "#!", "network_config": "eth0: {}"},
            "network_config: names no version",
        ),
        (
            {"user_data": "#!", "network_config": "version: 2" + " " * NETWORK_MAX},
            "network_config: is longer",
        ),
        (
            {"user_data": "#!", "meta_data": {"../x": "y"}},
            "meta_data: '../x' is not a plain name",
        ),
        (
            {"user_data": "#!", "meta_data": {"instance-id": "mine"}},
            "meta_data: instance-id is ours",
        ),
        (
            {"user_data": "#!", "meta_data": {"a": "x" * META_MAX}},
            "meta_data: is longer",
        ),
    ],
)
def test_what_cloud_init_would_not_take_is_refused_by_its_field(
    given: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidError) as refused:
        read_seed({"cloud_init": given})

    assert f"config.vm.cloud_init.{said}" in str(refused.value)


def test_a_server_without_one_has_none() -> None:
    assert read_seed({"image": "demo"}) is None
    assert without_seed({"vm": {"image": "demo"}}) == {"vm": {"image": "demo"}}


def test_what_is_shown_says_that_there_is_one_and_not_what() -> None:
    given = {"user_data": USER_DATA, "meta_data": {"token": SECRET}}
    config = {"vm": {"image": "demo", "cloud_init": given}, "more": 1}

    shown = without_seed(config)

    assert SECRET not in str(shown)
    assert set(shown["vm"]["cloud_init"]) == {"user_data", "meta_data"}
    assert shown["more"] == 1
    assert SECRET not in repr(read_seed(config["vm"]))  # type: ignore[arg-type]
