"""Which backend makes a firewall, port mappings and masquerading, and which ones CHECK accepts.

What is named is taken, or the ADD fails. What is not falls back in an order, from what a host
lacks: a program, a library, a kind of sets, a capability. None of that is simulated but the place
where programs and the library are looked for.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET
from types import ModuleType
from typing import Any

import pytest

from harness import Host, ipset_elements, nft_list, run_in
from harness import firewalld as real
from pycni.kernel.netfilter import ipset, iptables, nftables
from pycni.kernel.netlink import socket as netlink_socket
from pycni.kernel.netlink.errors import NetlinkError
from pycni.plan.steps import Firewall, IngressPolicy, Masquerade, PortMap, PortMapping
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.owner import Owner, Owners
from pycni.steps import firewall, ingress_policy, masquerade, port_map
from pycni.steps.namespaces import HostAndSandbox

OWNER = Owner("net", "one", "eth0")
ADDRESS = "10.15.20.2"


@pytest.fixture
def kernel(host: Host) -> Iterator[HostAndSandbox]:
    with HostAndSandbox(None) as kernel:
        yield kernel


def saved() -> list[str]:
    """The rules of iptables, whichever keeps them."""
    lines: list[str] = []
    for program in ("iptables-save", "iptables-legacy-save"):
        lines += run_in(None, [program]).stdout.splitlines()
    return [line for line in lines if line.startswith("-A")]


def elements(name: str) -> list[Any]:
    """What a set or map of ours holds, [] if it is not there."""
    found = [
        entry[kind]
        for entry in nft_list()
        for kind in ("set", "map")
        if entry.get(kind, {}).get("table") == "pycni" and entry[kind]["name"] == name
    ]
    return found[0].get("elem", []) if found else []


def has_chain(name: str) -> bool:
    return any(entry.get("chain", {}).get("name") == name for entry in nft_list())


# --- what a host may lack ------------------------------------------------------------------------


class Lacking:
    """Takes things from the host."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self._patch = patch
        self._folder = folder

    def __call__(self, *what: str) -> None:
        for each in what:
            getattr(self, each)()

    def nftables(self) -> None:
        """The library, which makes the rules."""
        self._patch.setattr(nftables, "LIBRARY", "libnftables-not-there.so.1")
        self._patch.setattr(nftables, "_library", None)
        self._patch.setattr(nftables, "_usable", {})

    def iptables(self) -> None:
        """The programs."""
        self._only({})

    def iptables_nft(self) -> None:
        """The programs that keep their rules in nftables; there are those that do not."""
        names = [f"{name}{end}" for name in ("iptables", "ip6tables") for end in ENDS]
        self._only({name: os.path.realpath("/usr/sbin/iptables-legacy") for name in names})

    def ip6tables(self) -> None:
        """The programs for IPv6."""
        names = [f"iptables{end}" for end in ENDS]
        self._only({name: f"/usr/sbin/{name}" for name in names})

    def ipset(self) -> None:
        """The kind of sets."""
        self._patch.setattr(ipset, "_KIND", "hash:nothing")

    def _only(self, programs: dict[str, str]) -> None:
        """Have these be all programs that are found, by what they lead to."""
        self._folder.mkdir()
        for name, target in programs.items():
            (self._folder / name).symlink_to(target)
        self._patch.setattr(iptables, "SYSTEM_PATH", str(self._folder))
        self._patch.setenv("PATH", f"{self._folder}")


ENDS = ("", "-save", "-restore")


@pytest.fixture
def lacking(
    kernel: HostAndSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Any]:
    return Lacking(monkeypatch, tmp_path / "programs")


@pytest.fixture
def everything_again(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function by which the host lacks nothing any more, so that the test can look."""
    return monkeypatch.undo


def without(capability: str, script: str) -> str:
    """What Python prints that has all rights but one, in the test's namespace."""
    environ = {**os.environ, "PYTHONPATH": "src"}
    argv = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"]
    argv += [sys.executable, "-c", SCRIPT + script]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SCRIPT = f"""
from pycni.plan.steps import Firewall, Masquerade, PortMap, PortMapping
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.owner import Owner
from pycni.steps import firewall, masquerade, port_map
from pycni.steps.namespaces import HostAndSandbox
kernel = HostAndSandbox(None)
owner = Owner("net", "one", "eth0")
address, network = parse_address("{ADDRESS}"), parse_network("{ADDRESS}/24")
"""


# --- firewall ------------------------------------------------------------------------------------


def opened(backend: str = "", *more: str) -> Firewall:
    return Firewall(OWNER, tuple(map(parse_address, (ADDRESS, *more))), backend)


def let_through_by() -> set[str]:
    """The backends that let the container's packets through, but firewalld."""
    found = set()
    if has_chain("firewall-forward") and ADDRESS in str(elements("firewall4")):
        found.add("nftables")
    if f"add CNI-FORWARD4 {ADDRESS}" in ipset_elements():
        found.add("ipset")
    if f"-A CNI-FORWARD -s {ADDRESS}/32 -j ACCEPT" in saved():
        found.add("iptables")
    return found


FIREWALLS = [
    ("", (), "ipset"),
    ("", ("nftables",), "ipset"),
    ("", ("ipset",), "iptables"),
    ("", ("iptables_nft",), "iptables"),
    ("", ("nftables", "ipset"), "iptables"),
    ("", ("iptables",), "nftables"),
    ("", ("iptables", "ipset"), "nftables"),
    ("iptables", (), "iptables"),
    ("iptables", ("nftables",), "iptables"),
    ("nftables", (), "nftables"),
]


@pytest.mark.parametrize(("named", "lacks", "taken"), FIREWALLS)
def test_firewall(
    kernel: HostAndSandbox,
    lacking: Lacking,
    everything_again: Callable[[], None],
    named: str,
    lacks: tuple[str, ...],
    taken: str,
) -> None:
    step = opened(named)
    lacking(*lacks)
    assert firewall.apply(step, kernel) is not None
    assert firewall.check(step, kernel) == []
    firewall.repair(step, kernel)
    everything_again()
    assert let_through_by() == {taken}
    firewall.remove(step, kernel)
    assert let_through_by() == set()


@pytest.mark.parametrize(
    ("named", "lacks", "refusal"),
    [
        ("nftables", ("nftables",), r"libnftables-not-there\.so\.1 cannot be loaded"),
        ("", ("nftables", "iptables"), r"libnftables-not-there\.so\.1 cannot be loaded"),
        ("iptables", ("iptables",), "not found in PATH"),
        ("firewalld", (), "D-Bus cannot be reached"),
    ],
)
def test_firewall_that_cannot_be_had(
    kernel: HostAndSandbox,
    lacking: Lacking,
    everything_again: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    lacks: tuple[str, ...],
    refusal: str,
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/no-such-bus")
    lacking(*lacks)
    with pytest.raises((OSError, CNIError), match=refusal):
        firewall.apply(opened(named), kernel)
    everything_again()
    assert let_through_by() == set()


def test_firewall_of_families_one_of_which_iptables_cannot_do(
    kernel: HostAndSandbox, lacking: Lacking, everything_again: Callable[[], None]
) -> None:
    lacking("ip6tables")
    firewall.apply(opened("", "fd00::2"), kernel)
    everything_again()
    assert let_through_by() == {"nftables"}


def test_firewall_without_the_right_to_look_for_a_set(kernel: HostAndSandbox) -> None:
    """iptables refuses the rules that look into sets: then each container has its own."""
    script = "step = Firewall(owner, (address,)); firewall.apply(step, kernel)"
    assert without("net_raw", script) == ""
    assert let_through_by() == {"iptables"}
    # Who has the right takes the sets for the ones that count, and accepts the rules.
    assert firewall.check(opened(), kernel) == []
    run_in(None, ["iptables", "-F", "CNI-FORWARD"])
    assert "-A CNI-FORWARD" in "\n".join(firewall.check(opened(), kernel))


@pytest.mark.parametrize("made", ["iptables", "ipset", "nftables"])
def test_check_of_a_firewall_that_another_backend_made(kernel: HostAndSandbox, made: str) -> None:
    firewall.apply(opened("" if made == "ipset" else made), kernel)
    assert let_through_by() == {made}
    assert (firewall.check(opened(), kernel) == []) == (made != "nftables")
    assert (firewall.check(opened("iptables"), kernel) == []) == (made == "iptables")
    assert (firewall.check(opened("nftables"), kernel) == []) == (made == "nftables")
    firewall.remove(opened(), kernel)
    assert let_through_by() == set()


@pytest.fixture
def daemon(
    kernel: HostAndSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[real.Firewalld]:
    if not real.installed():
        pytest.skip("no firewalld")
    with real.running(tmp_path / "firewalld", "nftables") as found:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", found.address)
        yield found


@pytest.mark.parametrize("named", ["", "firewalld", "iptables", "nftables"])
def test_firewall_where_firewalld_decides(
    kernel: HostAndSandbox, daemon: real.Firewalld, named: str
) -> None:
    step = opened(named)
    undo = firewall.apply(step, kernel)
    assert undo is not None
    is_its = named in ("", "firewalld")
    assert daemon.sources("trusted") == ({f"{ADDRESS}/32"} if is_its else set())
    assert let_through_by() == (set() if is_its else {named})
    assert firewall.check(step, kernel) == []
    undo()
    assert daemon.sources("trusted") == let_through_by() == set()


# --- ingressPolicy -------------------------------------------------------------------------------


def policy_by() -> set[str]:
    """The backends that keep the bridge apart."""
    found = {"nftables"} if "br0" in str(elements("firewall-bridges")) else set()
    if any(line.startswith("-A CNI-ISOLATION-STAGE-1 -i br0 ! -o br0 ") for line in saved()):
        found.add("iptables")
    return found


POLICIES = [
    ("", (), "iptables"),
    ("", ("ipset",), "iptables"),
    ("", ("iptables",), "nftables"),
    ("iptables", (), "iptables"),
    ("nftables", (), "nftables"),
]


def kept_apart(kernel: HostAndSandbox, named: str) -> IngressPolicy:
    run_in(None, ["ip", "link", "add", "br0", "type", "bridge"])
    kernel.host.forget("br0")
    return IngressPolicy("br0", isolated=False, families=(AF_INET,), backend=named)


@pytest.mark.parametrize(("named", "lacks", "taken"), POLICIES)
def test_ingress_policy(
    kernel: HostAndSandbox,
    lacking: Lacking,
    everything_again: Callable[[], None],
    named: str,
    lacks: tuple[str, ...],
    taken: str,
) -> None:
    step = kept_apart(kernel, named)
    lacking(*lacks)
    assert ingress_policy.apply(step, kernel) is not None
    assert ingress_policy.check(step, kernel) == []
    everything_again()
    assert policy_by() == {taken}


@pytest.mark.parametrize("lacks", ["", "nftables"])
@pytest.mark.parametrize("named", ["", "firewalld"])
def test_ingress_policy_where_firewalld_decides(
    kernel: HostAndSandbox,
    daemon: real.Firewalld,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    lacks: str,
    named: str,
) -> None:
    """nftables has a drop that holds whatever firewalld accepts; else iptables."""
    step = kept_apart(kernel, named)
    with monkeypatch.context() as patch:
        Lacking(patch, tmp_path / "programs")(*filter(None, [lacks]))
        assert ingress_policy.apply(step, kernel) is not None
        assert ingress_policy.check(step, kernel) == []
    assert policy_by() == {"iptables" if lacks else "nftables"}


def test_gc_of_policies_looks_at_each_backend(kernel: HostAndSandbox) -> None:
    step = kept_apart(kernel, "iptables")
    ingress_policy.apply(step, kernel)
    ingress_policy.apply(step.replace(backend="nftables"), kernel)
    assert policy_by() == {"iptables", "nftables"}
    run_in(None, ["ip", "link", "delete", "br0"])
    kernel.host.forget("br0")
    ingress_policy.collect(kernel, Owners("net"))
    assert policy_by() == set()


# --- port mappings and masquerading --------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of step with the backends nftables and iptables, and a table of the reference.

    reference: that table, with what the reference would enter for `OWNER`, as commands of nft.
    """

    module: ModuleType
    step: Callable[[str], Any]
    chain: str
    reference: str

    def made_by(self) -> set[str]:
        found = set()
        if any(
            ADDRESS in str(elements(name)) for name in ("port-map4", "masquerade-10.15.20.0/24")
        ):
            found.add("nftables")
        if any(line.startswith(f"-A {OWNER.chain(self.chain)} ") for line in saved()):
            found.add("iptables")
        listing = run_in(None, ["nft", "list", "ruleset"]).stdout
        if "cni_hostport" in listing and "dnat to 10.15.20.2:80 comment" in listing:
            found.add("reference")
        if "cni_plugins_masquerade" in listing and OWNER.comment in listing:
            found.add("reference")
        return found


PORTS = Kind(
    port_map,
    lambda backend: PortMap(
        OWNER, (PortMapping("tcp", 8080, 80),), (parse_network(f"{ADDRESS}/24"),), backend
    ),
    "CNI-DN-",
    f"""
    table ip cni_hostport {{
      chain hostports {{
        tcp dport 8080 dnat to {ADDRESS}:80 comment "one"
      }}
      chain hostip_hostports {{ }}
      chain masquerading {{ }}
    }}
    """,
)
SOURCES = Kind(
    masquerade,
    lambda backend: Masquerade(OWNER, (parse_network(f"{ADDRESS}/24"),), backend),
    "CNI-",
    f"""
    table inet cni_plugins_masquerade {{
      chain masq_checks {{
        ip saddr == {ADDRESS} ip daddr != 10.15.20.0/24 masquerade comment "{OWNER.comment}"
      }}
    }}
    """,
)
KINDS = pytest.mark.parametrize("kind", [PORTS, SOURCES], ids=["port_map", "masquerade"])


@KINDS
@pytest.mark.parametrize(
    ("named", "lacks", "taken"),
    [
        ("", (), "nftables"),
        ("", ("iptables",), "nftables"),
        ("", ("nftables",), "iptables"),
        ("", ("nftables", "iptables_nft"), "iptables"),
        ("", ("nftables", "ip6tables"), "iptables"),  # of IPv4 alone
        ("nftables", (), "nftables"),
        ("nftables", ("iptables",), "nftables"),
        ("iptables", (), "iptables"),
        ("iptables", ("nftables",), "iptables"),
    ],
)
def test_nftables_or_iptables(
    kernel: HostAndSandbox,
    lacking: Lacking,
    everything_again: Callable[[], None],
    kind: Kind,
    named: str,
    lacks: tuple[str, ...],
    taken: str,
) -> None:
    step = kind.step(named)
    lacking(*lacks)
    assert kind.module.apply(step, kernel) is not None
    assert kind.module.check(step, kernel) == []
    kind.module.repair(step, kernel)
    everything_again()
    assert kind.made_by() == {taken}
    assert kind.module.check(step, kernel) == []
    kind.module.remove(step, kernel)
    assert kind.made_by() == set()


@KINDS
@pytest.mark.parametrize(
    ("named", "lacks", "refusal"),
    [
        ("nftables", ("nftables",), r"libnftables-not-there\.so\.1 cannot be loaded"),
        ("", ("nftables", "iptables"), r"libnftables-not-there\.so\.1 cannot be loaded"),
        ("iptables", ("iptables",), "not found in PATH"),
    ],
)
def test_neither_can_be_had(
    kernel: HostAndSandbox,
    lacking: Lacking,
    everything_again: Callable[[], None],
    kind: Kind,
    named: str,
    lacks: tuple[str, ...],
    refusal: str,
) -> None:
    lacking(*lacks)
    with pytest.raises(OSError, match=refusal):
        kind.module.apply(kind.step(named), kernel)
    everything_again()
    assert kind.made_by() == set()


@KINDS
def test_what_netlink_refuses_iptables_does_not_do(
    kernel: HostAndSandbox, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """It is about what was asked for, not about what the host can do."""
    other = kind.step("").replace(
        owner=Owner("net", "two", "eth0"), addresses=(parse_network("10.15.20.3/24"),)
    )
    if kind is PORTS:
        other = other.replace(mappings=(PortMapping("tcp", 8081, 80),))
    kind.module.apply(other, kernel)

    def refuse(request: Any) -> None:
        if request.what.startswith("add "):
            raise NetlinkError(errno.ENOSPC, "refused by the test", request.what)

    with monkeypatch.context() as patch:
        patch.setattr(netlink_socket, "before_send", refuse)
        with pytest.raises(NetlinkError):
            kind.module.apply(kind.step(""), kernel)
    assert kind.made_by() == set()


@KINDS
@pytest.mark.parametrize(("number", "taken"), [(errno.EOPNOTSUPP, "iptables"), (errno.EPERM, "")])
def test_what_the_library_refuses(
    kernel: HostAndSandbox, monkeypatch: pytest.MonkeyPatch, kind: Kind, number: int, taken: str
) -> None:
    """iptables may do it, unless it is the right to it that is missing."""

    def refuse(commands: str) -> None:
        raise nftables.NftError(number, "refused by the test", commands)

    with monkeypatch.context() as patch:
        patch.setattr(nftables, "run", refuse)
        if taken:
            assert kind.module.apply(kind.step(""), kernel) is not None
        else:
            with pytest.raises(nftables.NftError):
                kind.module.apply(kind.step(""), kernel)
        with pytest.raises(nftables.NftError):
            kind.module.apply(kind.step("nftables"), kernel)
    assert kind.made_by() == {taken} - {""}


@KINDS
@pytest.mark.parametrize("named", ["", "nftables", "iptables"])
@pytest.mark.parametrize("made", ["nftables", "iptables", "reference", "nothing"])
def test_check_accepts(kernel: HostAndSandbox, kind: Kind, made: str, named: str) -> None:
    """What any backend made, unless one is named; the reference's tables are its nftables."""
    if made == "reference":
        run_in(None, ["nft", kind.reference])
    elif made != "nothing":
        kind.module.apply(kind.step(made), kernel)
    assert kind.made_by() == {made} - {"nothing"}
    accepted = {"": ("nftables", "iptables", "reference"), "nftables": ("nftables", "reference")}
    differences = kind.module.check(kind.step(named), kernel)
    assert (differences == []) == (made in accepted.get(named, ("iptables",)))
    if differences:
        expected = "iptables: table nat lacks" if named == "iptables" else "nftables: "
        assert all(line.startswith(expected) for line in differences)
    kind.module.remove(kind.step(named), kernel)
    assert kind.made_by() == set()


@KINDS
def test_check_says_what_is_missing_where_it_was_made(kernel: HostAndSandbox, kind: Kind) -> None:
    """In iptables, if the container has its chain there and nothing in nftables."""
    kind.module.apply(kind.step("iptables"), kernel)
    chain = OWNER.chain(kind.chain)
    run_in(None, ["iptables", "-t", "nat", "-F", chain])
    differences = kind.module.check(kind.step(""), kernel)
    assert differences
    assert all(
        line.startswith(f"iptables: table nat lacks the rule: -A {chain}") for line in differences
    )
    run_in(None, ["nft", kind.reference])
    assert kind.module.check(kind.step(""), kernel) == []


@KINDS
@pytest.mark.parametrize("by", ["DEL", "DEL without addresses", "GC"])
def test_what_each_backend_made_goes(kernel: HostAndSandbox, kind: Kind, by: str) -> None:
    if kind is SOURCES:
        kind.module.apply(kind.step("nftables"), kernel)
        made = {"nftables", "iptables", "reference"}
    else:  # whose ports iptables would refuse twice
        made = {"iptables", "reference"}
    kind.module.apply(kind.step("iptables"), kernel)
    run_in(None, ["nft", kind.reference])
    assert kind.made_by() == made
    if by == "GC":
        kind.module.collect(kernel, Owners("net"))
    else:
        step = kind.step("nftables")
        kind.module.remove(step if by == "DEL" else step.replace(addresses=()), kernel)
    # The reference's rules for ports name no network.
    left = {"reference"} if by == "GC" and kind is PORTS else set()
    assert kind.made_by() == left
