"""Metrics as a scraper reads them: they parse, they move, they name nobody."""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.fix_fabric import until
from tests.fix_runtime import Served
from tests.http.client import Caller, Json
from tests.http.conftest import Meet, Still, still_instance

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
FAMILY = 40
"""No family has more samples than this, histograms apart."""


@pytest.fixture
def scraper(meet: Meet) -> Caller:
    return meet("metrics")


async def scrape(caller: Caller) -> Samples:
    answer = await caller.get("/metrics")
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


async def until_moved(
    caller: Caller, before: Samples, name: str, **labels: str
) -> Samples:
    """Scrape until this is more than it was: what is looked up is kept for seconds."""

    def moved(now: Samples) -> bool:
        return value(now, name, **labels) > value(before, name, **labels)

    return await until_true(caller, moved)


async def until_true(caller: Caller, good: Callable[[Samples], bool]) -> Samples:
    async def look() -> Samples | None:
        found = await scrape(caller)
        return found if good(found) else None

    return await until(look, "the metrics to move")


async def test_a_scrape_parses_in_both_formats(scraper: Caller) -> None:
    text = await scraper.get("/metrics")
    modern = await scraper.call(
        "GET",
        "/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0"},
    )

    names = {
        family.name for family in text_string_to_metric_families(text.body.decode())
    }
    assert modern.headers["Content-Type"].startswith("application/openmetrics-text")
    families = list(
        openmetrics.text_string_to_metric_families(  # type: ignore[no-untyped-call]
            modern.body.decode()
        )
    )
    assert {family.name for family in families} == names
    for family in families:
        assert re.fullmatch(r"(trustfabric|process|python)_[a-z0-9_]+", family.name)
        assert family.documentation
        assert not family.name.endswith(("_ms", "_minutes", "_total"))
        if family.type == "counter":
            assert all(
                sample.name.endswith(("_total", "_created"))
                for sample in family.samples
            )


async def test_every_family_is_documented_and_the_other_way_round(
    scraper: Caller,
) -> None:
    document = DOCUMENT.read_text()
    answer = await scraper.get("/metrics")
    shown = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(answer.body.decode())
        if family.name.startswith("trustfabric_")
    }

    pools = {name for name in shown if name.startswith("trustfabric_postgres_pool_")}
    for name in shown - pools:
        assert f"`{name}" in document, name
    for name in pools:
        assert name.removeprefix("trustfabric_postgres_pool") in document, name
    told = set(re.findall(r"\| `(trustfabric_[a-z_]+)`", document))
    assert told - shown - {"trustfabric_postgres_pool_limit"} == set()


async def test_the_fleet_is_counted(scraper: Caller, runtime: Served) -> None:
    samples = await scrape(scraper)

    def total(name: str) -> float:
        return sum(count for (each, _), count in samples.items() if each == name)

    assert value(samples, "trustfabric_database_up") == 1
    assert total("trustfabric_instances") == total("trustfabric_instances_by_status")
    assert value(samples, "trustfabric_actors", kind="Meter") == 1
    assert value(samples, "trustfabric_actor_starts_total") > 10
    assert value(samples, "trustfabric_build_info", version=version("trustfabric")) == 1
    assert value(samples, "trustfabric_loop_lag_seconds_count") > 0


async def test_values_move_when_things_happen(
    scraper: Caller, runtime: Served, alice: Caller
) -> None:
    before = await scrape(scraper)
    vm = still_instance(runtime, alice.user)

    vm.quarantine()
    await alice.post(f"/api/servers/{vm.server_id}/redeploy")

    moves = {"previous": "suspect", "current": "quarantined"}
    after = await until_moved(
        scraper, before, "trustfabric_lifecycle_moves_total", **moves
    )
    delivered = "trustfabric_stream_delivery_seconds_count"
    assert value(after, delivered, stream="trust") > value(
        before, delivered, stream="trust"
    )
    await until_moved(scraper, before, "trustfabric_instances", lifecycle="quarantined")
    after = await until_moved(
        scraper,
        before,
        "trustfabric_gate_refusals_total",
        note="lifecycle:quarantined",
    )
    refused = {"verb": "redeploy", "allowed": "false"}
    decided = "trustfabric_gate_decisions_total"
    assert value(after, decided, **refused) == value(before, decided, **refused) + 1


async def test_open_streams_are_counted(scraper: Caller, alice: Caller) -> None:
    before = value(await scrape(scraper), "trustfabric_stream_clients")

    async with alice.stream("/api/trust/registry/stream") as stream:
        await stream.frame()
        during = value(await scrape(scraper), "trustfabric_stream_clients")

    assert during >= before + 1


async def test_labels_are_few_and_name_nobody(
    scraper: Caller, runtime: Served, alice: Caller
) -> None:
    names: list[Json] = [
        await alice.made("/api/servers", {"name": f"needle-{n}"}) for n in range(50)
    ]
    vms = [still_instance(runtime, alice.user) for _ in range(30)]
    for vm in vms:
        vm.quarantine()

    samples = await scrape(scraper)
    text = (await scraper.get("/metrics")).body.decode()

    counts: dict[str, int] = {}
    for name, _ in samples:
        if not name.endswith("_bucket"):
            counts[name] = counts.get(name, 0) + 1
    assert max(counts.values()) <= FAMILY, counts
    assert "needle" not in text
    assert not any(vm.name in text for vm in vms)
    assert runtime.database_url not in text
    assert scraper.token is not None
    assert scraper.token not in text
    assert len(names) == 50


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_it_tells_of_everybody_so_not_everybody_is_told(
    role: str, meet: Meet, nobody: Caller, boss: Caller
) -> None:
    (await meet(role).get("/metrics")).problem(403, "forbidden")
    (await nobody.get("/metrics")).problem(401, "unauthenticated")
    assert (await boss.get("/metrics")).status == 200


async def test_a_scraper_s_token_opens_nothing_else(scraper: Caller, vm: Still) -> None:
    for path in ("/api/servers", vm.path, "/api/system/actors", "/api/session"):
        (await scraper.get(path)).problem(403, "forbidden")
    refused = await scraper.post(f"/api/servers/{vm.server_id}/start")
    refused.problem(403, "forbidden")


async def test_unknown_parameters_are_refused(scraper: Caller) -> None:
    (await scraper.get("/metrics", name="x")).problem(400, "malformed")
