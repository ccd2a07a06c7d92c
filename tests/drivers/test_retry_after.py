"""How long an API asks us to wait: seconds or a date, within reason."""

import pytest

from trustfabric.drivers.retry_after import LONGEST_S, retry_after_s

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"Retry-After": "999999"}, LONGEST_S),
        ({"Retry-After": "9" * 50}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "٣"}, None),
        ({}, None),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": DATE}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:00:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT", "Date": DATE}, LONGEST_S),
        ({"Retry-After": DATE}, None),
    ],
)
def test_the_wait_is_what_is_asked_for_within_reason(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after_s(headers) == seconds
