"""portmap and firewall beside Debian's (release 1.1.1): equal, and each able to follow the other.

Those know iptables only, and no nftables; firewalld is tried as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, ask, run_in, run_plugin
from harness import firewalld as real
from harness.firewalld import Firewalld
from harness.kernel_state import iptables_saved
from harness.machines import FAR, HOST, Machines, addresses
from harness.services import service

MAPPINGS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 5300, "containerPort": 81, "protocol": "udp"},
    {"hostPort": 8443, "containerPort": 81, "protocol": "tcp", "hostIP": "192.0.2.1"},
    {"hostPort": 8444, "containerPort": 81, "protocol": "tcp", "hostIP": "2001:db8::1"},
]
PORTMAPS: dict[str, dict[str, Any]] = {
    "default": {},
    "no snat": {"snat": False},
    "mark": {"markMasqBit": 5},
    "chain": {"externalSetMarkChain": "MARKS"},
    "conditions": {"conditionsV4": ["-s", "192.0.2.0/24"], "conditionsV6": ["!", "-s", "::1"]},
}
FIREWALLS: dict[str, dict[str, Any]] = {
    "default": {},
    "chain": {"iptablesAdminChainName": "MINE"},
    "same bridge": {"ingressPolicy": "same-bridge"},
}
PLUGINS = [("portmap", name) for name in PORTMAPS] + [("firewall", name) for name in FIREWALLS]

every_config = pytest.mark.parametrize(
    ("plugin", "keys"), PLUGINS, ids=[f"{plugin}, {name}" for plugin, name in PLUGINS]
)


class Pair:
    """One attachment, for either of the two plugins to work on."""

    def __init__(self, machines: Machines, reference_dir: Path) -> None:
        self.machines = machines
        self.reference_dir = reference_dir
        for program in ("iptables", "ip6tables"):
            run_in(None, [program, "-t", "nat", "-N", "MARKS"])

    def container(self, name: str, families: tuple[int, ...] = (4, 6)) -> Attachment:
        return self.machines.container(name, families=families)

    def plugin(self, whose: str, plugin: str, keys: str, container: Attachment) -> Attachment:
        own = (PORTMAPS if plugin == "portmap" else FIREWALLS)[keys]
        config = {"backend": "iptables", **own}
        if plugin == "portmap":
            config["runtimeConfig"] = {"portMappings": MAPPINGS}
        made = self.machines.chained(plugin, container, **config)
        if whose == "reference":
            made.plugin = self.reference_dir / plugin
            made.path = str(self.reference_dir)
            made.call = run_plugin
        return made


@pytest.fixture
def pair(machines: Machines, reference_dir: Path) -> Pair:
    return Pair(machines, reference_dir)


def rules() -> list[str]:
    """The rules of iptables and ip6tables, in their order."""
    return iptables_saved("nat") + iptables_saved("filter")


def by_chain(lines: list[str]) -> dict[str, list[str]]:
    """Rules by table and chain: which chain was made first is no matter."""
    found: dict[str, list[str]] = {}
    table = ""
    family = 0
    # The reference's later releases have other comments for policies.
    for line in [line.replace("same-bridge|isolated", "same-bridge") for line in lines]:
        if line.startswith("*"):
            table = line
            family += table == "*nat"
        elif line.startswith("-A "):
            found.setdefault(f"{family} {table} {line.split()[1]}", []).append(line)
    return found


every_family = pytest.mark.parametrize(
    "families", [(4,), (6,), (4, 6)], ids=["IPv4", "IPv6", "both families"]
)


def check(attachment: Attachment, families: tuple[int, ...], folder: Path) -> None:
    """CHECK, by either project's plugin.

    portmap 1.1.1 looks for the rules of one family in both, so it is given the program of one, and
    is no use for two.
    """
    if attachment.call is not run_plugin or attachment.plugin.name != "portmap":
        attachment.check()
    elif len(families) == 1:
        program = "iptables" if families == (4,) else "ip6tables"
        folder.mkdir(exist_ok=True)
        link = folder / program
        if not link.exists():
            link.symlink_to(f"/usr/sbin/{program}")
        attachment.env["PATH"] = str(folder)
        attachment.check()
        del attachment.env["PATH"]


@every_family
@every_config
def test_same_result_and_same_rules(
    pair: Pair, plugin: str, keys: str, families: tuple[int, ...], tmp_path: Path
) -> None:
    container = pair.container("one", families)
    results, made, left = [], [], []
    before = by_chain(rules())
    for whose in ("reference", "ours"):
        attachment = pair.plugin(whose, plugin, keys, container)
        results.append(attachment.add())
        check(attachment, families, tmp_path / "bin")
        made.append(by_chain(rules()))
        attachment.delete()
        left.append(by_chain(rules()))
        run_in(None, ["nft", "flush ruleset"])
        for program in ("iptables", "ip6tables"):
            run_in(None, [program, "-t", "nat", "-N", "MARKS"])
    assert _without_empty(results[0]) == _without_empty(results[1])
    # It maps ::1 and link-local addresses too, which leads nowhere.
    for chain, lines in made[1].items():
        if "CNI-DN-" in chain:
            lines[:] = [line for line in lines if not line.endswith("-j RETURN")]
    assert made[0] == made[1] != before
    assert left[0] == left[1]


def _without_empty(result: dict[str, Any]) -> dict[str, Any]:
    """Release 1.1.1 writes an empty dns into a 1.0.0 result."""
    return {key: value for key, value in result.items() if key != "dns" or value}


@pytest.mark.parametrize(("first", "second"), [("reference", "ours"), ("ours", "reference")])
@every_family
@every_config
def test_each_follows_the_other(
    pair: Pair,
    plugin: str,
    keys: str,
    families: tuple[int, ...],
    first: str,
    second: str,
    tmp_path: Path,
) -> None:
    other = pair.container("two", families)
    if plugin == "firewall":
        # The shared chains and another container's rules are there already.
        pair.plugin(first, plugin, keys, other).add()
    container = pair.container("one", families)
    before = rules()
    adds = pair.plugin(first, plugin, keys, container)
    result = adds.add()
    assert rules() != before
    follows = pair.plugin(second, plugin, keys, container)
    follows.result = result
    for each in (adds, follows):
        check(each, families, tmp_path / "bin")
    if plugin == "portmap":
        for family in families:
            assert ask(pair.machines.client, HOST[family], 8080).startswith("one ")
    if plugin == "firewall":
        drop()
        with service(pair.machines.far, "far", 80):
            for family in families:
                assert ask(container.sandbox, FAR[family], 80).startswith("far ")
    follows.delete()
    assert adds.run("CHECK", prevResult=result).code == 1
    assert [line for line in rules() if _is_of(line, container)] == []
    if plugin == "firewall":
        assert [line for line in rules() if _is_of(line, other)] != []


def drop() -> None:
    for program in ("iptables", "ip6tables"):
        run_in(None, [program, "-P", "FORWARD", "DROP"])


def _is_of(line: str, container: Attachment) -> bool:
    names = (f'id: \\"{container.container}\\"', *(f"{a}/" for a in addresses(container).values()))
    targets = ("CNI-DN-", *(f"--to-destination {a}" for a in addresses(container).values()))
    return any(name in line for name in (*names, *targets))


@pytest.mark.parametrize("whose", ["reference", "ours"])
def test_default_backend_follows_what_was_there(pair: Pair, whose: str, tmp_path: Path) -> None:
    """Without a backend named, CHECK and DEL find what the reference made; that is iptables."""
    container = pair.container("one", (4,))
    before = rules()
    adds = pair.plugin("reference", "portmap", "default", container)
    del adds.config["backend"]
    adds.add()
    follows = pair.plugin(whose, "portmap", "default", container)
    del follows.config["backend"]
    follows.result = adds.result
    check(follows, (4,), tmp_path / "bin")
    follows.delete()
    assert [line for line in rules() if _is_of(line, container)] == []
    assert len(rules()) > len(before)  # what containers share


def test_gc_of_what_the_reference_made(pair: Pair) -> None:
    one, two = pair.container("one"), pair.container("two")
    pair.plugin("reference", "portmap", "default", one).add()
    second = pair.plugin("reference", "portmap", "default", two)
    second.config["runtimeConfig"] = {"portMappings": [{**MAPPINGS[0], "hostPort": 9090}]}
    second.add()
    plugin = pair.machines.plugins / "portmap"
    config = {
        "cniVersion": "1.1.0", "name": "first", "type": "portmap",
        "cni.dev/valid-attachments": [{"containerID": "two", "ifname": "eth0"}],
    }  # fmt: skip
    assert run_plugin(plugin, "GC", config).code == 0
    assert f"{addresses(one)[4]}:80" not in "\n".join(rules())
    assert ask(pair.machines.client, HOST[4], 9090).startswith("two ")


# --- firewalld -----------------------------------------------------------------------------------


@pytest.fixture
def daemon(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Firewalld]:
    with real.on_the_system_bus(tmp_path / "firewalld", "nftables", monkeypatch) as daemon:
        yield daemon


def test_firewalld(daemon: Firewalld, pair: Pair) -> None:
    container = pair.container("one")
    wanted = {f"{addresses(container)[4]}/32", f"{addresses(container)[6]}/128"}
    for first, second in (("ours", "reference"), ("reference", "ours")):
        adds = pair.plugin(first, "firewall", "default", container)
        follows = pair.plugin(second, "firewall", "default", container)
        for each in (adds, follows):
            each.config["backend"] = "firewalld"
            each.env["DBUS_SYSTEM_BUS_ADDRESS"] = daemon.address
        follows.result = adds.add()
        assert daemon.sources("trusted") == wanted
        follows.check()
        follows.delete()
        assert daemon.sources("trusted") == set()
