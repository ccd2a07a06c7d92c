"""Storm control: when a breaker opens, and what the affected have in common."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.holds import HoldScope
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.storms import (
    SHOWN,
    Cause,
    Census,
    Count,
    Hit,
    Member,
    StormLimits,
    Trait,
    in_common,
    judge,
)

LIMITS = StormLimits()


def a_hit(owner: int, quarantined: int, living: int) -> Hit:
    return Hit(owner_id=OwnerId(owner), count=Count(quarantined, living))


def a_census(*hits: Hit, living: int = 0, **changes: Any) -> Census:
    total = living or sum(hit.count.living for hit in hits)
    return replace(Census(hits=hits, living=total), **changes)


def scopes(census: Census, limits: StormLimits = LIMITS) -> list[OwnerId | None]:
    return [trip.owner_id for trip in judge(census, limits)]


@pytest.mark.parametrize(
    ("quarantined", "living", "cause"),
    [
        (0, 0, None),
        (1, 2, None),
        (4, 4, None),
        (5, 25, None),
        (5, 24, Cause.SHARE),
        (30, 30, Cause.SHARE),
    ],
)
def test_it_takes_the_minimum_and_more_than_the_share(
    quarantined: int, living: int, cause: Cause | None
) -> None:
    assert Count(quarantined, living).passes(LIMITS) is cause


def test_a_number_is_too_many_whatever_its_share() -> None:
    limits = replace(LIMITS, number=50)

    assert Count(49, 100_000).passes(limits) is None
    assert Count(50, 100_000).passes(limits) is Cause.NUMBER


def test_one_owners_storm_is_that_owners_incident() -> None:
    assert scopes(a_census(a_hit(7, 30, 30), living=31)) == [7]
    assert scopes(a_census(a_hit(7, 30, 30), a_hit(8, 1, 20))) == [7]


def test_a_storm_over_several_owners_is_one_incident_of_the_fleet() -> None:
    (trip,) = judge(a_census(a_hit(7, 30, 30), a_hit(8, 30, 30)), LIMITS)

    assert (trip.scope, trip.owner_id, trip.count) == (
        HoldScope.ALL,
        None,
        Count(60, 60),
    )


def test_many_small_owners_make_a_storm_together() -> None:
    assert scopes(a_census(*(a_hit(owner, 1, 2) for owner in range(1, 11)))) == [None]


def test_two_owners_storms_in_a_large_fleet_are_two() -> None:
    census = a_census(a_hit(7, 30, 30), a_hit(8, 30, 30), living=10_000)

    assert scopes(census) == [7, 8]


def test_what_is_open_is_not_opened_again() -> None:
    hits = a_hit(7, 30, 30), a_hit(8, 2, 30)

    assert not scopes(a_census(*hits, open_owners=frozenset({OwnerId(7)})))
    assert not scopes(a_census(*hits, fleet_is_open=True))


def test_an_owners_storm_that_spreads_becomes_the_fleets() -> None:
    census = a_census(
        a_hit(7, 30, 30), a_hit(8, 30, 30), open_owners=frozenset({OwnerId(7)})
    )

    assert scopes(census) == [None]


counts = st.builds(Count, st.integers(0, 200), st.integers(0, 200))
limits_ = st.builds(
    StormLimits,
    minimum=st.integers(1, 20),
    percent=st.floats(0.1, 100),
    number=st.none() | st.integers(1, 50),
)
hits_ = st.dictionaries(
    st.integers(1, 5), st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5
)


def a_fleet(hits: Mapping[int, tuple[int, int]], living: int) -> Census:
    made = [
        a_hit(owner, fallen, fallen + well) for owner, (fallen, well) in hits.items()
    ]
    return a_census(*made, living=living + sum(one.count.living for one in made))


@given(hits_, st.integers(0, 500), limits_)
def test_nothing_opens_below_the_minimum(
    hits: dict[int, tuple[int, int]], others: int, limits: StormLimits
) -> None:
    for trip in judge(a_fleet(hits, others), limits):
        assert trip.count.quarantined >= limits.minimum
        if limits.number is None:
            share = 100 * trip.count.quarantined / trip.count.living
            assert share > limits.percent * 0.999_999


@given(hits_, st.integers(0, 500), limits_, st.data())
def test_more_quarantines_never_close_what_fewer_opened(
    hits: dict[int, tuple[int, int]], others: int, limits: StormLimits, data: Any
) -> None:
    before = judge(a_fleet(hits, others), limits)
    if not hits:
        assert not before
        return
    owner = data.draw(st.sampled_from(sorted(hits)))
    fallen, well = hits[owner]
    more = data.draw(st.integers(0, well))
    worse = {**hits, owner: (fallen + more, well - more)}

    after = judge(a_fleet(worse, others), limits)

    assert bool(after) or not before
    held = {trip.owner_id for trip in after}
    for trip in before:
        if trip.owner_id is not None:
            assert held & {trip.owner_id, None}


@given(hits_, st.integers(0, 500), limits_)
def test_a_storm_opens_the_fleets_breaker_or_owners_never_both(
    hits: dict[int, tuple[int, int]], others: int, limits: StormLimits
) -> None:
    opened = scopes(a_fleet(hits, others), limits)

    assert None not in opened or opened == [None]
    assert len(set(opened)) == len(opened)


# --- what they have in common -------------------------------------------------------


def a_member(number: int, *, affected: bool, **traits: str) -> Member:
    return Member(InstanceId(number), affected, traits)


def test_the_most_telling_trait_goes_first() -> None:
    bad = [
        a_member(n, affected=True, image="bad", tier="standard", host=f"h{n % 2}")
        for n in range(10)
    ]
    good = [
        a_member(n, affected=False, image="good", tier="standard", host=f"h{n % 2}")
        for n in range(10, 30)
    ]

    (first,) = in_common([*bad, *good])

    assert first == Trait(
        trait="image",
        value="bad",
        affected=10,
        affected_total=10,
        rest=0,
        rest_total=20,
    )
    assert first.telling == 1.0


def test_where_nobody_else_lives_what_all_share_is_told_likeliest_cause_first() -> None:
    members = [
        a_member(n, affected=True, tier="sev", image="bad", host=f"h{n}")
        for n in range(6)
    ]

    assert [one.trait for one in in_common(members)] == ["image", "tier"]


def test_what_the_others_have_as_often_says_nothing() -> None:
    members = [a_member(n, affected=n < 5, image="same") for n in range(10)]

    assert in_common(members) == []


traits = st.dictionaries(
    st.sampled_from(["image", "host", "tier", "x"]), st.sampled_from("abc"), max_size=4
)
members_ = st.lists(
    st.builds(Member, st.just(InstanceId(1)), st.booleans(), traits), max_size=40
)


@given(members_)
def test_traits_are_counted_truly_and_in_order(members: list[Member]) -> None:
    found = in_common(members)

    assert len(found) <= SHOWN
    assert [one.telling for one in found] == sorted(
        (one.telling for one in found), reverse=True
    )
    for one in found:
        having = [m for m in members if m.traits.get(one.trait) == one.value]
        assert one.affected == sum(m.affected for m in having)
        assert one.rest == len(having) - one.affected
        assert 2 * one.affected > one.affected_total
