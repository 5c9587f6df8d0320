"""Sequences that pycni got wrong once, as the driver made them small: replayed by the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sequences.disturbances import Appear, Break, Edit, Fix, Kill, Lose, Refuse, Vanish
from sequences.model import IPTABLES, NFTABLES, REFERENCE, Net
from sequences.operations import GC, Add, Check, Del, Operation, Repair
from sequences.stage import Setup


@dataclass(frozen=True)
class Case:
    """fault: what went wrong."""

    fault: str
    setup: Setup
    operations: tuple[Operation, ...]


def _plain(name: str = "n", **settings: Any) -> Net:
    """A network with what a case needs, and no more."""
    bare = {"masquerade": "", "portmap": "", "firewall": "", "bandwidth": False, "tuning": False}
    return Net(name, f"br-{name}", **{**bare, **settings})


def _one(way: str = "in process", **settings: Any) -> Setup:
    if way == "mixed":
        settings["version"] = "1.0.0"
    return Setup((_plain(**settings),), way)


CASES = (
    Case(
        "a second interface with the same port ends the first one's flows",
        _one(portmap=IPTABLES),
        (
            Add("n", "c", "s3", ports=(8080,)),
            Add("n", "c", "s3", interface="eth1", ports=(8080,)),
        ),
    ),
    Case(
        "DEL releases an address though its flows could not be forgotten",
        _one(portmap=IPTABLES),
        (
            Add("n", "b", "s2", ports=(8080,)),
            Refuse(Del("n", "b", "s2", ports=(8080,)), 3),
        ),
    ),
    Case(
        "DEL of a stranger takes the tuning backup of the container's other network",
        Setup((_plain(tuning=True), _plain("n2", tuning=True))),
        (Add("n2", "b", "s2"), Del("n", "b", "s2"), Del("n2", "b", "s2")),
    ),
    Case(
        "DEL of a stranger takes the iptables rules of the container's other interface",
        _one(portmap=IPTABLES, masquerade=IPTABLES),
        (Add("n", "c", "s3", interface="eth1", ports=(8080,)), Del("n", "c", "s2")),
    ),
    Case(
        "GC leaves the flows of iptables' mappings",
        _one(portmap=IPTABLES),
        (Add("n", "b", "s2", ports=(8080,)), Lose("cache"), Vanish("s2"), GC("n")),
    ),
    Case(
        "DEL without cache and notes leaves the flows of iptables' masquerading",
        _one(masquerade=IPTABLES),
        (Add("n", "a", "s1"), Lose("cache"), Lose("run"), Del("n", "a", "s1")),
    ),
    Case(
        "DEL leaves flows where the ruleset was lost, and the plugin is missing",
        _one(portmap=NFTABLES),
        (
            Add("n", "c", "s3", ports=(8080,)),
            Break("portmap", "missing"),
            Lose(NFTABLES),
            Del("n", "c", "s3", ports=(8080,)),
        ),
    ),
    Case(
        "a second ADD, refused, removes the living attachment",
        _one(),
        (Add("n", "a", "s1"), Lose("cache"), Lose("run"), Add("n", "a", "s1")),
    ),
    Case(
        "an ADD elsewhere, refused, releases an address that a port still leads to",
        _one(portmap=NFTABLES),
        (
            Add("n", "b", "s4", ports=(8080,)),
            Break("portmap", "missing"),
            Lose("run"),
            Del("n", "b", "s4", ports=(8080,)),
            Fix(),
            Add("n", "b", "s2"),
        ),
    ),
    Case(
        "tuning's backup goes with the interface, though its own DEL has failed",
        _one(tuning=True),
        (Add("n", "c", "s3"), Refuse(Del("n", "c", "s3"), 2), GC("n")),
    ),
    Case(
        "a new ADD elsewhere finds tuning's backup of the earlier one",
        _one("libcni", tuning=True),
        (Add("n", "d", "s2"), Vanish("s2"), Add("n", "d", "s4"), Del("n", "d", "s4")),
    ),
    Case(
        "repair revives an attachment whose interface has gone",
        _one("libcni", firewall=NFTABLES),
        (Add("n", "c", "s3"), Break("bridge", "after"), Del("n", "c", "s3"), Repair()),
    ),
    *(
        Case(
            f"the same container's port in a network that it has left stays dead by {backend}",
            Setup((_plain(portmap=backend), _plain("n2", portmap=backend))),
            (
                Add("n", "b", "s4", ports=(8080,)),
                Vanish("s4"),
                Add("n2", "b", "s2", ports=(8080,)),
            ),
        )
        for backend in (NFTABLES, IPTABLES)
    ),
    Case(
        "DEL ends the flows of who has the address by now",
        _one(portmap=IPTABLES, firewall=NFTABLES),
        (
            Add("n", "a", "s1"),
            Lose("leases"),
            Kill(Del("n", "a", "s1"), 33),
            Add("n", "c", "s3", ports=(8080,)),
            Del("n", "a", "s1"),
        ),
    ),
    Case(
        "DEL without cache and notes leaves what was dropped from the configuration",
        _one(masquerade=IPTABLES),
        (
            Add("n", "c", "s3"),
            Lose("cache"),
            Edit("n", "masquerade", ""),
            Lose("run"),
            Del("n", "c", "s3"),
        ),
    ),
    Case(
        "a plugin dropped from the list leaves an ifb where the notes were lost",
        _one("libcni", bandwidth=True),
        (
            Add("n", "b", "s2"),
            Edit("n", "bandwidth", False),
            Lose("run"),
            Del("n", "b", "s2"),
        ),
    ),
    Case(
        "a plugin dropped from the list leaves the note of its part",
        _one("libcni", portmap=NFTABLES),
        (Add("n", "a", "s1"), Edit("n", "portmap", ""), Del("n", "a", "s1")),
    ),
    Case(
        "DEL by a wrong path leaves what the reference's firewall let through",
        _one("mixed", firewall=IPTABLES),
        (Add("n", "a", "s1", by=REFERENCE), Del("n", "a", "s4")),
    ),
    Case(
        "repair puts the address of an attachment that the reference made on its successor",
        Setup((_plain(version="1.0.0"), _plain("n2", version="1.0.0")), "mixed"),
        (
            Add("n2", "d", "s4", by=REFERENCE),
            Add("n", "a", "s1"),
            Vanish("s4"),
            Appear("s4"),
            Add("n", "d", "s4", by=REFERENCE),
            Repair(),
        ),
    ),
    Case(
        "repair makes an interface in a namespace of which nothing says whose it is",
        _one("mixed"),
        (Add("n", "c", "s3", by=REFERENCE), Vanish("s3"), Appear("s3"), Repair()),
    ),
    Case(
        "DEL of one that the reference made leaves flows, its masquerading dropped from the list",
        _one("mixed", masquerade=IPTABLES),
        (
            Add("n", "d", "s4", by=REFERENCE),
            Edit("n", "masquerade", ""),
            Del("n", "d", "s4"),
        ),
    ),
    Case(
        "CHECK after the leases were lost",
        _one(),
        (Add("n", "b", "s2"), Lose("leases"), Add("n", "a", "s1"), Check("n", "b", "s2")),
    ),
)
