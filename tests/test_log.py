"""The log is events with fields, and holds no secret."""

import json
import logging

import pytest
import structlog
from pydantic import SecretStr

from trustfabric.log import mask_text, set_up


def logged(capsys: pytest.CaptureFixture[str], **fields: object) -> dict[str, object]:
    set_up("info", "json")
    structlog.get_logger().info("run.finished", **fields)
    structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    document = json.loads(line)
    assert isinstance(document, dict)
    return document


def test_an_event_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    document = logged(capsys, run_id=7, message="two\nlines")

    assert document["event"] == "run.finished"
    assert (document["run_id"], document["message"]) == (7, "two\nlines")


@pytest.mark.parametrize(
    "fields",
    [
        {"token": "hunter2"},
        {"db_password": "hunter2"},
        {"headers": {"Authorization": "hunter2"}},
        {"url": "postgresql://me:hunter2@db/x"},
        {"header": "Bearer hunter2"},
        {"value": SecretStr("hunter2")},
        {"tried": ["postgresql://me:hunter2@db/x"]},
    ],
)
def test_a_secret_is_masked(
    capsys: pytest.CaptureFixture[str], fields: dict[str, object]
) -> None:
    assert "hunter2" not in json.dumps(logged(capsys, **fields))


def test_a_traceback_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    password = "hunter" + "2"
    try:
        raise ValueError(f"no route to postgresql://me:{password}@db/x")
    except ValueError as error:
        document = logged(capsys, exc_info=error)

    assert "no route to postgresql://me:***@db/x" in str(document["exception"])
    assert password not in json.dumps(document)


def test_what_json_has_no_room_for_is_told_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = logged(capsys, number=2**70, text="\ud800", inner={1: "one"})

    assert document["number"] == 2**70
    assert document["inner"] == {"1": "one"}


def test_what_only_looks_like_a_secret_stays() -> None:
    assert mask_text("http://host:3000/a@b") == "http://host:3000/a@b"


def test_a_json_web_token_is_masked_anywhere() -> None:
    assert mask_text("got eyJhbGci.eyJzdWIi.c2ln!") == "got ***!"


def test_less_than_the_level_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("warning", "json")
    structlog.get_logger().info("run.finished")
    structlog.reset_defaults()

    assert capsys.readouterr().err == ""


def test_a_terminal_gets_readable_lines(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "console")
    structlog.get_logger().info("run.finished", run_id=7)
    structlog.reset_defaults()

    assert "run.finished" in capsys.readouterr().err


def test_what_a_library_logs_is_masked_too(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "json")
    logging.getLogger("psycopg.pool").warning(
        "cannot connect to %s", "postgresql://me:hunter2@db/x"
    )
    logging.getLogger("asyncio").debug("of no interest")
    structlog.reset_defaults()
    logging.basicConfig(handlers=[], force=True)

    (line,) = capsys.readouterr().err.splitlines()
    document = json.loads(line)
    assert document["logger"] == "psycopg.pool"
    assert document["level"] == "warning"
    assert document["event"] == "cannot connect to postgresql://me:***@db/x"
