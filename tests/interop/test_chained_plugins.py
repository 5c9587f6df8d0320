"""tuning, sbr and bandwidth beside the reference's: equal results, and each follows the other.

The reference is Debian's package, release 1.1.1. vrf, which needs another kernel, is compared in
tests/lab/test_vrf.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Sandbox, ip_json, run_in, run_plugin
from harness.chained import make_veth, previous_result
from harness.host import forget_attachments
from harness.reference import VERSIONS, WITH_CHECK, comparable

MAC = "0a:58:0a:01:02:03"
LIMITS = {
    "ingressRate": 8_000_000,
    "ingressBurst": 800_000,
    "egressRate": 16_000_000,
    "egressBurst": 1_600_000,
}
KEYS: dict[str, dict[str, Any]] = {
    "tuning": {
        "mac": MAC,
        "mtu": 1400,
        "promisc": True,
        "allmulti": True,
        "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.eth0.arp_filter": "1"},
    },
    "sbr": {},
    "bandwidth": LIMITS,
}


@pytest.fixture
def attach(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> Attach:
    """Makes an attachment of a veth in a new sandbox; veth0 of an earlier one goes."""

    def make(plugin: str, version: str = "1.0.0", **keys: Any) -> Attachment:
        run_in(None, ["ip", "link", "del", "veth0"], check=False)
        inside = sandbox()
        make_veth(inside, "10.1.1.2/24", "fd00:1::2/64")
        run_in(inside, ["ip", "route", "add", "192.0.2.0/24", "via", "10.1.1.9"])
        config = {
            "cniVersion": version,
            "name": "net",
            "type": plugin,
            "prevResult": previous_result(
                version, inside, ("10.1.1.2/24", "10.1.1.1"), ("fd00:1::2/64", "fd00:1::1")
            ),
            **({"dataDir": str(tmp_path / "data")} if plugin == "tuning" else {}),
            **KEYS[plugin],
            **keys,
        }
        return Attachment(plugin_dir / plugin, config, inside, call=run_plugin)

    return make


def tuned(one: Attachment) -> Any:
    (link,) = ip_json("link", "show", "dev", "eth0", netns=one.sandbox)
    return link["address"] == MAC, link["mtu"], sorted(link["flags"])


def sysctls(one: Attachment) -> str:
    keys = ["net.core.somaxconn", "net.ipv4.conf.eth0.arp_filter"]
    return run_in(one.sandbox, ["sysctl", *keys]).stdout


def routing(one: Attachment) -> Any:
    """Rules, and the unicast routes of tables that a rule leads to.

    Without link-local ones, which we leave where they are. The reference copies IPv6 routes to an
    IPv4 address's table as well, where nothing finds them.
    """
    found = []
    for family in ("-4", "-6"):
        rules = ip_json(family, "rule", netns=one.sandbox)
        tables = {rule["table"] for rule in rules}
        found += [("rule", rule["src"], rule["table"], rule["priority"]) for rule in rules]
        for route in ip_json(family, "route", "show", "table", "all", netns=one.sandbox):
            table = str(route.get("table", "main"))
            unicast = route.get("type", "unicast") == "unicast"
            if unicast and table in tables and not route["dst"].startswith("fe80"):
                found.append(("route", route["dst"], route.get("gateway"), table))
    return sorted(found, key=str)


def shaping(_: Attachment) -> Any:
    """The qdiscs and filters of the host. The reference redirects twice, where once does it."""
    qdiscs = json.loads(run_in(None, ["tc", "-j", "qdisc"]).stdout)
    filters = run_in(None, ["tc", "filter", "show", "dev", "veth0", "parent", "ffff:"]).stdout
    lines = [line.strip() for line in filters.splitlines()]
    kept = [line for line in lines if "order 2:" not in line and not line.startswith("index")]
    return qdiscs, [line for line in kept if line]


LOOK: dict[str, Callable[[Attachment], Any]] = {
    "tuning": lambda one: (tuned(one), sysctls(one)),
    "sbr": routing,
    "bandwidth": shaping,
}
CASES = [
    (plugin, version)
    for plugin in KEYS
    for version in VERSIONS
    if plugin != "bandwidth" or version >= "0.3.0"
]


@pytest.mark.parametrize(("plugin", "version"), CASES)
def test_each_follows_the_other(
    attach: Attach, reference_dir: Path, plugin: str, version: str, tmp_path: Path
) -> None:
    results, effects = [], []
    for ours_first in (True, False):
        ours = attach(plugin, version)
        theirs = replace(ours, plugin=reference_dir / plugin)
        adder, deleter = (ours, theirs) if ours_first else (theirs, ours)
        before = tuned(ours)
        assert ours.sandbox is not None
        result = adder.add()
        text = json.dumps(comparable(result)).replace(ours.sandbox.path, "SANDBOX")
        results.append(json.loads(text))
        effects.append(LOOK[plugin](ours))
        deleter.result = result
        if version in WITH_CHECK:
            ours.check()
            theirs.check()
        deleter.delete()
        assert tuned(ours) == before
        assert ip_json("link", "show", "type", "ifb") == []
        assert "lookup 100" not in run_in(ours.sandbox, ["ip", "rule"]).stdout
        assert "lookup 101" not in run_in(ours.sandbox, ["ip", "-6", "rule"]).stdout
        assert not any((tmp_path / "data").glob("*"))
        # Neither minds that it is gone already.
        ours.delete()
        theirs.delete()
    assert results[0] == results[1]
    assert effects[0] == effects[1]


@pytest.mark.parametrize(
    ("rate", "burst"),
    # Bursts of less than a frame, which the reference takes and drops everything by, are refused.
    [(8, 12_128), (16, 12_128), (8000, 16000), (10**9, 10**9), (5 * 10**10, 10**9)],
)
def test_figures_of_the_token_bucket(
    attach: Attach, reference_dir: Path, rate: int, burst: int
) -> None:
    effects = []
    for ours_first in (True, False):
        one_way = {"egressRate": 0, "egressBurst": 0}
        ours = attach("bandwidth", ingressRate=rate, ingressBurst=burst, **one_way)
        theirs = replace(ours, plugin=reference_dir / "bandwidth")
        ours.result = theirs.result = (ours if ours_first else theirs).add()
        effects.append(run_in(None, ["tc", "-d", "qdisc", "show", "dev", "veth0", "root"]).stdout)
        ours.check()
        theirs.check()
        forget_attachments()  # the next one is another container of the same id
    assert effects[0] == effects[1]


def test_tuning_puts_back_what_the_reference_noted(
    attach: Attach, reference_dir: Path, tmp_path: Path
) -> None:
    ours = attach("tuning", sysctl={})
    theirs = replace(ours, plugin=reference_dir / "tuning")
    files = []
    for one in (ours, theirs):
        one.add()
        (file,) = (tmp_path / "data").iterdir()
        files.append((file.name, json.loads(file.read_text())))
        one.delete()
    assert files[0][0] == files[1][0]
    for key in ("network", "containerID", "ifname", "applied"):  # whose they are; the sysctls are
        files[0][1].pop(key, None)  # those of the reference
    assert files[0][1] == files[1][1]
