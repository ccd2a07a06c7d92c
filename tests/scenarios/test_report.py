import json
from pathlib import Path

import pytest

from trustfabric.scenarios.manifest import load
from trustfabric.scenarios.report import (
    Verdict,
    manifest_document,
    masked,
    write_manifest,
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@db:5432/x?a=b", "postgresql://u:***@db:5432/x?a=b"),
        ("postgresql://u:p%40ss@[::1]:5/x", "postgresql://u:***@[::1]:5/x"),
        ("postgresql://u:a@b@db/x", "postgresql://u:***@db/x"),
        ("postgresql://db/x?password=secret", "postgresql://db/x?password=***"),
        ("host=db password=secret user=u", "host=db password=*** user=u"),
        ("host=db password = 'a \\' b' user=u", "host=db password=*** user=u"),
        ("postgresql://db/x", "postgresql://db/x"),
    ],
)
def test_a_databases_password_is_masked_however_it_is_written(
    url: str, shown: str
) -> None:
    assert masked(url) == shown


def test_the_manifest_says_what_ran_and_how_it_went(tmp_path: Path) -> None:
    document = {"name": "a", "tag": "t:a", "kind": "tenant-isolation"}
    other = {"name": "b", "tag": "t:b", "kind": "concurrent-approvals"}
    source = tmp_path / "documents"
    source.mkdir()
    (source / "x.json").write_text(json.dumps({"scenarios": [document, other]}))
    transcript = tmp_path / "t.jsonl"
    transcript.write_text('{"run_id": 1}\n{"run_id": 2}\n')
    verdicts = [
        Verdict(scenario="a", tenant="one", seconds=1.5, faults=()),
        Verdict(scenario="a", tenant="two", seconds=2.5, faults=("lost an event",)),
    ]

    path = write_manifest(
        tmp_path,
        manifest_document(
            load(source), verdicts, database_url="postgresql:///", transcript=transcript
        ),
    )

    written = json.loads(path.read_text())
    first, second = written["scenarios"][0]["scenarios"]
    assert (first["verdict"], first["seconds"]) == ("fail", 2.5)
    assert [one["verdict"] for one in first["results"]] == ["pass", "fail"]
    assert (second["verdict"], second["seconds"]) == ("not-run", None)
    assert "t:a" in written["validation_tags"]
    assert "t:b" not in written["validation_tags"]
    assert written["stream_transcript"]["events"] == 2
    assert written["stream_transcript"]["bytes"] == transcript.stat().st_size
    assert len(written["scenarios"][0]["sha256"]) == 64


def test_a_manifest_of_nothing_that_ran_has_no_tags() -> None:
    document = manifest_document(load(), database_url=None)
    assert document["validation_tags"] == []
    assert document["stream_transcript"] is None
