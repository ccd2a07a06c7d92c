"""The key of hardware's names in the data directory."""

import stat
from pathlib import Path

from trustfabric.keys import identity_key_of


def test_it_is_made_once_for_us_alone(tmp_path: Path) -> None:
    key = identity_key_of(tmp_path)

    assert identity_key_of(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "identity-key").stat().st_mode) == 0o600
    assert identity_key_of(tmp_path / "other") != key
