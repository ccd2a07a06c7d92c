"""A folder of collateral: what is read of it, when, and what is said about it."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from tests.domain.evidence.snp_platform import NOW, YEAR, Platform
from tests.domain.test_attestation_vectors import read
from trustfabric.domain.attestation.collateral import Stock, most_bytes
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.drivers.collateral import CollateralFolder

MILAN = Platform()
CRL = "amd/Milan.crl"
FMSPC = "intel/b0c06f000000.json"
INTEL = read("intel-tdx/v4-uptodate-phala.collateral.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "amd").mkdir()
    (tmp_path / "intel").mkdir()
    return tmp_path


def of(folder: Path) -> CollateralFolder:
    return CollateralFolder(folder, MILAN.anchors())


def content(found: CollateralFolder, name: str = CRL) -> bytes | None:
    collateral = found.read(name)
    return None if collateral is None else collateral.content


def test_a_file_is_read_as_it_is_now(folder: Path) -> None:
    old, new = MILAN.crl(), MILAN.crl(101)
    (folder / CRL).write_bytes(old)
    found = of(folder)
    before = content(found)

    (folder / CRL).write_bytes(new)
    changed = content(found)
    (folder / CRL).unlink()

    assert (before, changed, content(found)) == (old, new, None)


def test_one_that_took_another_s_place_is_read_though_size_and_time_are_the_same(
    folder: Path,
) -> None:
    path = folder / CRL
    path.write_bytes(b"a")
    found = of(folder)
    assert content(found) == b"a"
    fresh = folder / "amd" / "fresh"
    fresh.write_bytes(b"b")
    told = path.stat()
    os.utime(fresh, ns=(told.st_atime_ns, told.st_mtime_ns))

    fresh.replace(path)

    assert content(found) == b"b"


def test_a_file_that_did_not_change_is_not_read_again(folder: Path) -> None:
    (folder / CRL).write_bytes(MILAN.crl())
    found = of(folder)

    assert found.read(CRL) is found.read(CRL)


def test_what_can_t_be_read_is_there_all_the_same(folder: Path) -> None:
    os.mkfifo(folder / CRL)  # nobody ever writes to it

    assert content(of(folder)) == b""


def test_a_file_beyond_its_bound_is_not_taken_in(folder: Path) -> None:
    (folder / CRL).write_bytes(bytes((most_bytes(CRL) or 0) + 1))

    assert content(of(folder)) == b""


def test_of_a_folder_that_is_gone_every_file_can_t_be_read(tmp_path: Path) -> None:
    assert content(of(tmp_path / "unmounted")) == b""


def test_what_can_t_be_used_is_told_once_and_again_when_it_changed(
    folder: Path,
) -> None:
    path, found = folder / CRL, of(folder)
    with capture_logs() as logs:
        for rubbish in (b"rubbish", b"other rubbish"):
            path.write_bytes(rubbish)
            for _ in range(3):
                found.read(CRL)

    assert [(log["event"], log["name"]) for log in logs] == [
        ("collateral.unusable", CRL)
    ] * 2
    assert "no revocation list" in logs[0]["error"]


def test_a_list_of_an_unheard_of_version_is_one_that_can_t_be_used(
    folder: Path,
) -> None:
    (folder / CRL).write_bytes(MILAN.crl().replace(b"\2\1\1", b"\2\1\0", 1))

    (known,) = of(folder).survey()

    assert known.ends is None


def test_a_survey_says_when_each_file_runs_out(folder: Path) -> None:
    (folder / CRL).write_bytes(MILAN.crl(next_update=NOW + timedelta(days=1)))
    (folder / "amd/Genoa.crl").write_bytes(MILAN.crl())

    known = {each.collateral.name: each.ends for each in of(folder).survey()}

    assert known == {CRL: NOW + timedelta(days=1), "amd/Genoa.crl": None}


def test_the_stock_of_a_maker_ends_with_its_first_file(folder: Path) -> None:
    (folder / CRL).write_bytes(MILAN.crl(next_update=NOW + timedelta(days=1)))
    (folder / "amd/Genoa.crl").write_bytes(MILAN.crl())

    stock = of(folder).stock()

    assert stock == {"amd": Stock(NOW + timedelta(days=1), 1), "intel": Stock(None, 0)}


def test_a_folder_that_is_gone_is_not_an_empty_one(tmp_path: Path) -> None:
    stock = of(tmp_path / "unmounted").stock()

    assert {each.unusable for each in stock.values()} == {1}


def test_files_that_nothing_reads_are_named(folder: Path) -> None:
    (folder / "amd/milan.crl").write_bytes(MILAN.crl())
    (folder / FMSPC).write_bytes(INTEL)

    assert of(folder).strange() == ["amd/milan.crl"]


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_lists_come_as_der_or_pem(folder: Path, encoding: Encoding) -> None:
    crl = x509.load_der_x509_crl(MILAN.crl())
    (folder / CRL).write_bytes(crl.public_bytes(encoding))

    (known,) = of(folder).survey()

    assert known.ends == NOW + YEAR


def test_intel_s_come_as_the_vectors_have_them(folder: Path) -> None:
    (folder / FMSPC).write_bytes(INTEL)

    (known,) = CollateralFolder(folder, packaged_anchors()).survey()

    assert known.ends == datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)
