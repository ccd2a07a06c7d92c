"""What a run of the matrix leaves: the manifest, and the transcript of its stream."""

import asyncio
import contextlib
import hashlib
import json
import os
import platform
import re
import signal
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from trustfabric.scenarios.manifest import Manifest
from trustfabric.scenarios.model import Scenario
from trustfabric.scenarios.runtime import MCPCTL, dying_with_us

MATRIX_TAGS = ("validation:remediation-chaos-matrix", "validation:remediation_flow")
"""Shown by every run of the matrix, beside the tags of its scenarios."""
MANIFEST_NAME = "manifest.json"
TRANSCRIPT_NAME = "remediation-stream.jsonl"
_STOP_S = 10.0
_PASSWORD_WORD = re.compile(r"password\s*=\s*('(?:[^'\\]|\\.)*'|\S+)")
_PASSWORD_QUERY = re.compile(r"password=[^&]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a scenario went for a tenant."""

    scenario: str
    tenant: str
    seconds: float
    faults: tuple[str, ...]

    @property
    def word(self) -> str:
        return "fail" if self.faults else "pass"


def manifest_document(
    manifest: Manifest,
    verdicts: Sequence[Verdict] = (),
    *,
    database_url: str | None,
    transcript: Path | None = None,
) -> dict[str, Any]:
    """Return the manifest; scenarios without verdicts were not run."""
    by_name: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_name.setdefault(verdict.scenario, []).append(verdict)
    ran = [one.tag for one in manifest.scenarios if one.name in by_name]
    return {
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "database_url": database_url,
        "scenario_root": str(manifest.root),
        "scenarios": [
            {
                "path": source.path.name,
                "sha256": source.sha256,
                "format": source.format,
                "description": source.document.description,
                "scenarios": [
                    _scenario(one, by_name.get(one.name, ()))
                    for one in source.document.scenarios
                ],
            }
            for source in manifest.sources
        ],
        "validation_tags": sorted({*ran, *MATRIX_TAGS}) if ran else [],
        "stream_transcript": None if transcript is None else _file(transcript),
        "versions": {
            "trustfabric": version("trustfabric"),
            "python": platform.python_version(),
        },
    }


def _scenario(scenario: Scenario, verdicts: Iterable[Verdict]) -> dict[str, Any]:
    found = list(verdicts)
    failed = any(one.faults for one in found)
    return {
        "name": scenario.name,
        "tag": scenario.tag,
        "kind": scenario.kind.value,
        "tenants": list(scenario.tenants),
        "verdict": ("fail" if failed else "pass") if found else "not-run",
        "seconds": max((one.seconds for one in found), default=None),
        "results": [
            {
                "tenant": one.tenant,
                "verdict": one.word,
                "seconds": one.seconds,
                "faults": list(one.faults),
            }
            for one in found
        ],
    }


def _file(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {
        "path": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "events": content.count(b"\n"),
    }


def masked(url: str) -> str:
    """Return a database's address, a URL or `key=value` words, without its password."""
    if "://" not in url:
        return _PASSWORD_WORD.sub("password=***", url)
    parts = urlsplit(url)
    netloc, query = parts.netloc, _PASSWORD_QUERY.sub("password=***", parts.query)
    if parts.password is not None:
        netloc = f"{parts.username or ''}:***@{netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def write_manifest(directory: Path, document: Mapping[str, Any]) -> Path:
    """Write the manifest whole, or not at all."""
    path = directory / MANIFEST_NAME
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    fresh.replace(path)
    return path


@asynccontextmanager
async def transcribing(path: Path, url: str, token: str) -> AsyncIterator[None]:
    """Have `mcpctl remediation watch --json` write to `path` while the block runs."""
    with path.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *dying_with_us(),
            *MCPCTL,
            *("--host", url, "remediation", "watch", "--json"),
            env={**os.environ, "MCP_HOST_TOKEN": token},
            stdin=DEVNULL,
            stdout=out,
            stderr=DEVNULL,
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
