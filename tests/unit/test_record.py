"""Records behave as the dataclasses they stand in for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from pycni.spec.record import Record


def _upper(text: str) -> str:
    return text.upper()


class Lease(Record):
    address: str
    ifname: str = "eth0"
    tags: tuple[str, ...] = ()


class TimedLease(Lease):
    seconds: int = 0


def test_values_by_position_and_by_name() -> None:
    lease = Lease("10.0.0.2", tags=("a",))
    assert (lease.address, lease.ifname, lease.tags) == ("10.0.0.2", "eth0", ("a",))


def test_fields_of_a_base_come_first() -> None:
    lease = TimedLease("10.0.0.2", "net1", (), 60)
    assert (lease.ifname, lease.seconds) == ("net1", 60)


def test_fields_of_two_bases() -> None:
    """Of a field that both have, the default is that of the first, as with any attribute."""

    class Named(Record):
        ifname: str = "net0"
        alias: str = "none"

    class Both(TimedLease, Named):
        alias = "mine"

    both = Both(address="10.0.0.2")
    assert (both.ifname, both.seconds, both.alias) == ("eth0", TimedLease("a").seconds, "mine")
    assert both.replace(alias="other").alias == "other"


def test_annotations_that_are_not_postponed() -> None:
    """As in a plugin author's module without `from __future__ import annotations`."""
    body = {"__annotations__": {"name": str, "limit": ClassVar[int]}, "limit": 3}
    named = type("Named", (Record,), body)
    assert repr(named("a")) == "Named(name='a')"
    with pytest.raises(TypeError, match="Named has no field limit"):
        named("a", limit=4)


def test_a_function_may_be_a_value_and_a_default() -> None:
    class Named(Record):
        name: str = ""
        spelled: Callable[[str], str] = _upper

    assert Named().spelled("a") == "A"
    assert Named(spelled=str.lower).spelled("A") == "a"
    assert Named() == Named(spelled=_upper)


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((), {}, "Lease needs address"),
        (("a", "b", (), 1), {}, "Lease takes 3 values, got 4"),
        (("a",), {"address": "b"}, "Lease: address given twice"),
        (("a",), {"colour": "red", "size": 1}, "Lease has no field colour, size"),
    ],
)
def test_wrong_construction_says_what_is_wrong(
    values: tuple[Any, ...], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        Lease(*values, **named)
    assert str(caught.value) == message


def test_equal_by_value_and_class() -> None:
    assert Lease("a") == Lease("a", "eth0")
    assert Lease("a") != Lease("b")
    assert TimedLease("a") != Lease("a")
    assert Lease("a") != "a"


def test_equal_records_hash_alike_in_whatever_order_they_were_made() -> None:
    one = Lease(address="a", ifname="net1")
    other = Lease(ifname="net1", address="a")
    assert one == other
    assert {one} == {other}


def test_replace_leaves_the_original() -> None:
    lease = TimedLease("a", seconds=1)
    assert lease.replace(seconds=2) == TimedLease("a", seconds=2)
    assert lease.seconds == 1
    with pytest.raises(TypeError, match="has no field colour"):
        lease.replace(colour="red")


def test_repr_names_the_fields_in_order() -> None:
    assert repr(Lease(tags=("x",), address="a")) == "Lease(address='a', ifname='eth0', tags=('x',))"
