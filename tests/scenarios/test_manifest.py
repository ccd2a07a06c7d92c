"""Scenario documents: all valid, or none is used, with file and field named."""

import json
from pathlib import Path
from typing import Any

import pytest

from trustfabric.errors import ConfigError
from trustfabric.scenarios.manifest import DEFAULT_DIRECTORY, load
from trustfabric.scenarios.model import DEFAULT_TENANTS, Kind, Phase

PLAIN = {"name": "one", "tag": "validation:one", "kind": "tenant-isolation"}
CHAOS = {
    "name": "kill",
    "tag": "validation:kill",
    "kind": "actor-kill",
    "experiment": {
        "action": {"kill": "fabric/vms/{instance}", "during": "launch"},
        "recovery_seconds": 60,
    },
}


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        load(folder)
    return str(refused.value)


def test_the_repositorys_documents_are_valid_and_cover_every_kind() -> None:
    scenarios = load().scenarios
    assert {one.kind for one in scenarios} == set(Kind)
    phases = {one.experiment.action.during for one in scenarios if one.experiment}
    assert phases == set(Phase)


def test_the_default_folder_is_the_repositorys() -> None:
    assert load().root == DEFAULT_DIRECTORY.absolute()


def test_a_document_is_a_list_of_scenarios_or_one_alone(tmp_path: Path) -> None:
    write(tmp_path, "a.json", {"description": "d", "scenarios": [PLAIN]})
    (tmp_path / "b.yaml").write_text(
        "description: e\nname: two\ntag: t:two\nkind: concurrent-approvals\n"
        "tenants: [solo]\nmetadata: {policy_feedback: [x]}\n"
    )
    found = load(tmp_path)
    first, second = found.scenarios
    assert [source.document.description for source in found.sources] == ["d", "e"]
    assert [source.format for source in found.sources] == ["json", "yaml"]
    assert first.tenants == DEFAULT_TENANTS
    assert second.tenants == ("solo",)
    assert second.tag_for("solo") == "t:two::solo"
    assert found.tenants == ("solo", *DEFAULT_TENANTS)


def test_an_experiment_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a.json", CHAOS)
    experiment = load(tmp_path).scenarios[0].experiment
    assert experiment is not None
    assert experiment.action.during is Phase.LAUNCH
    assert experiment.steady_state.lifecycle_state == "restored"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "$: is not an object"),
        ({}, "$.name: is required"),
        ({**PLAIN, "kind": "nonsense"}, "$.kind: 'nonsense' is not one of tenant-"),
        ({**PLAIN, "kind": "network-cut"}, "$.kind: 'network-cut' is not one of"),
        ({**PLAIN, "knd": 1}, "$.knd: unknown field"),
        ({**PLAIN, "name": 7}, "$.name: "),
        ({**PLAIN, "name": "a b"}, "$.name: "),
        ({**PLAIN, "tenants": []}, "$.tenants: is empty"),
        ({**PLAIN, "tenants": ["a", "a"]}, "$.tenants: a is there twice"),
        ({**PLAIN, "tenants": ["a/b"]}, "$.tenants[0]: "),
        ({**PLAIN, "metadata": []}, "$.metadata: "),
        ({**PLAIN, "description": 1}, "$.description: is not a text"),
        ({"scenarios": []}, "$.scenarios: is empty"),
        ({"scenarios": [{**PLAIN, "tag": None}]}, "$.scenarios[0].tag: "),
        ({"scenarios": [PLAIN], "more": 1}, "$.more: unknown field"),
        ({**PLAIN, "kind": "actor-kill"}, "experiment: is required by kind actor-kill"),
        ({**CHAOS, "kind": "tenant-isolation"}, "kind tenant-isolation has none"),
        ({**CHAOS, "kind": "process-kill"}, "process-kill takes the word runtime"),
        (
            {**CHAOS, "experiment": {"action": {"kill": "fabric/x", "during": "now"}}},
            "$.experiment.action.during: 'now' is not one of launch",
        ),
        (
            {**CHAOS, "experiment": {"action": {"kill": "x; y", "during": "run"}}},
            "$.experiment.action.kill: ",
        ),
        ({**CHAOS, "experiment": {}}, "$.experiment.action: is required"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(
    tmp_path: Path, value: Any, fault: str
) -> None:
    write(tmp_path, "good.json", {**PLAIN, "name": "good", "tag": "good"})
    write(tmp_path, "wrong.json", value)
    text = refusal(tmp_path)
    assert fault in text
    assert text.startswith("wrong.json: ")


def test_every_fault_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "a.json", {"scenarios": [{}, {**PLAIN, "kind": "?"}]})
    (tmp_path / "b.yaml").write_text("a: 1\na: 2\n")
    (tmp_path / "c.toml").write_text("")
    (tmp_path / "d").mkdir()
    files = [line.split(":")[0] for line in refusal(tmp_path).splitlines()]
    assert files == ["a.json"] * 4 + ["b.yaml", "c.toml", "d"]


@pytest.mark.parametrize("field", ["name", "tag"])
def test_no_two_scenarios_share_name_or_tag(tmp_path: Path, field: str) -> None:
    write(tmp_path, "a.json", PLAIN)
    write(tmp_path, "b.json", {"name": "b", "tag": "b", **CHAOS, field: PLAIN[field]})
    assert refusal(tmp_path) == f"b.json: {field} {PLAIN[field]!r} is also in a.json"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    (tmp_path / ".hidden").write_text("")
    assert refusal(tmp_path) == f"{tmp_path}: holds no scenario document"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert refusal(missing) == f"{missing}: no such folder of scenario documents"


def test_a_document_of_fifty_megabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(50 << 20)
    assert "is larger than" in refusal(tmp_path)
