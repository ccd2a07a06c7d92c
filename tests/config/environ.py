"""What the tests of the configuration share."""

from collections.abc import Mapping

import pytest

from trustfabric.config import load_settings
from trustfabric.config.settings import all_variables
from trustfabric.errors import ConfigError

VARIABLES = [variable for _, variable, _ in all_variables()]


def faults(environ: Mapping[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return str(caught.value).splitlines()


def fault(environ: Mapping[str, str]) -> str:
    (only,) = faults(environ)
    return only
