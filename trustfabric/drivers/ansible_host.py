"""Runs ansible-runner: a program of its own, under the run's account and limits.

It is started by path in isolated mode and imports nothing of ours. It reads
`runner.json` from its working directory, and prints one JSON object a line: that
it runs (`begun`), what ansible says (`lines`), what a task did on a host (`record`),
the recap (`stats`).

    0   ansible ended, and the last line (`end`) says how
    69  ansible-runner or ansible-core is not installed
"""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

NOT_INSTALLED = 69
TEXT_LIMIT = 65_536
MESSAGE_LIMIT = 2000
_STATUS = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
    "runner_item_on_failed": "item-failed",
}


def main() -> int:
    """Run what runner.json says; return the exit code."""
    for name in ("ansible", "ansible_runner"):
        if importlib.util.find_spec(name) is None:
            sys.stderr.write(f"{name} is not installed\n")
            return NOT_INSTALLED
    import ansible_runner  # noqa: PLC0415  installed with the extra or not at all

    _say({"begun": True})
    told = json.loads(Path("runner.json").read_text())
    runner = ansible_runner.Runner(_config(ansible_runner, told), event_handler=_tell)
    signal.signal(signal.SIGTERM, _pass_on)
    runner.run()
    _say({"end": {"status": runner.status, "rc": runner.rc}})
    return 0


def _config(ansible_runner: Any, told: dict[str, Any]) -> Any:
    config = ansible_runner.RunnerConfig(
        private_data_dir=str(Path.cwd()),
        suppress_output_file=True,
        quiet=True,
        **told,
    )
    config.prepare()
    return config


def _tell(event: dict[str, Any]) -> bool:
    """Print one event; False: ansible-runner need not keep it."""
    data = event.get("event_data") or {}
    said: dict[str, Any] = {}
    if text := event.get("stdout"):
        said["lines"] = text[:TEXT_LIMIT].splitlines()
    if status := _STATUS.get(event["event"]):
        said["record"] = _record(status, data)
    if event["event"] == "playbook_on_stats":
        said["stats"] = {
            name: data.get(name) or {}
            for name in ("ok", "changed", "failures", "dark", "skipped", "rescued")
        }
        said["output"] = data.get("artifact_data") or None
    if said:
        _say(said)
    return False


def _record(status: str, data: dict[str, Any]) -> dict[str, Any]:
    result = data.get("res") or {}
    changed = bool(result.get("changed"))
    return {
        "play": data.get("play"),
        "task": data.get("task"),
        "action": data.get("resolved_action") or data.get("task_action"),
        "host": data.get("host"),
        "status": "changed" if status == "ok" and changed else status,
        "ignored": bool(data.get("ignore_errors")),
        "message": str(result.get("msg") or "")[:MESSAGE_LIMIT],
        "seconds": data.get("duration"),
    }


def _say(document: dict[str, Any]) -> None:
    line = json.dumps(document, default=str)
    if len(line) > 4 * TEXT_LIMIT:
        line = json.dumps({"lines": ["[an event that is too large was dropped]"]})
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _pass_on(number: int, _: object) -> None:
    """Tell ansible, which has a terminal and a group of its own."""
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                os.killpg(int(child), number)
            except OSError:
                continue


if __name__ == "__main__":
    sys.exit(main())
