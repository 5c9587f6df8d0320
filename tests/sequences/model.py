"""What should be: networks as configured today, containers' namespaces, and attachments.

An attachment is ALIVE, an ORPHAN (its namespace has gone, and no DEL came), or HALF (a DEL of it
was refused or cut short, or an ADD was). Of an orphan and of a half anything may be left, but no
address without its lease, until a DEL, GC or reclaim of it succeeds: see `ALLOWANCES`, which names
all that is tolerated and why. What `lost` names is not expected of a living one.
"""

from __future__ import annotations

import hashlib
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from sequences.lab import FAR, HOST_TO_FAR, SYSCTL

ALIVE, ORPHAN, HALF = "alive", "orphan", "half"
PORTS = (8080, 8081)  # of the host; the machine beyond serves on the first of them, too
CONTAINER_PORT = 80
NFTABLES, IPTABLES = "nftables", "iptables"
REFERENCE = "reference"  # whose plugins do an operation: else pycni's

# What is tolerated, by the name that violations and the model use for it.
ALLOWANCES = {
    ORPHAN: "the namespace went without DEL: what is on the host stays until DEL, GC or reclaim",
    HALF: "a DEL was refused, or ADD or DEL was killed: the rest stays until DEL or GC succeeds; "
    "with /run lost as well, a GC that fails may free its address",
    "rules": "the ruleset was lost: masquerade, ports and firewall until repair",
    "lease": "the lease was lost: the address may be given again, and CHECK fails, until DEL",
    "address": "two were given one address after its lease was lost: neither is expected to work",
    "port": "another took the port while the ruleset was lost: repair cannot give it back",
    "forgotten": "of an orphan whose lease and note were lost no one knows the address: no ADD; "
    "without rules, cache and notes no one knows what led to one: its flows end by themselves",
    "cache": "the runtime's entry was lost: CHECK, repair, GC and reclaim do not know of it",
    "settings": "/run was lost, GC did without DEL, or DEL without tuning: what it set stays",
    REFERENCE: "nothing but the cache says what it made, nor does it take back what a refused ADD "
    "made: neither is tried; its DEL knows not what pycni noted, nor forgets flows; its ADD "
    "forgets too many; where one of two holders of an address was its, neither is announced: who "
    "knows the earlier one's MAC address learns the later one's after a while",
    "tcp": "connections of a container that has gone are answered by a reset, and end",
}

Key = tuple[str, str, str]  # network, container id, interface


class Short:
    """Printed with what differs from the defaults only; what is printed makes it again."""

    def __repr__(self) -> str:
        shown = []
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if each.default is MISSING:
                shown.append(repr(value))
            elif value != each.default:
                shown.append(f"{each.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Net(Short):
    """A network's configuration. masquerade, portmap, firewall: the backend, "" for none."""

    name: str
    bridge: str
    prefix: int = 29
    masquerade: str = NFTABLES
    portmap: str = NFTABLES
    firewall: str = NFTABLES
    bandwidth: bool = True
    tuning: bool = True
    version: str = "1.1.0"

    @property
    def number(self) -> int:
        """Which network it is: what must differ between networks follows from it."""
        return len(self.name)

    def subnet(self, base: str) -> str:
        return f"{base}.{self.number}.0/{self.prefix}"

    def gateway(self, base: str) -> str:
        return f"{base}.{self.number}.1"

    @property
    def size(self) -> int:
        """How many addresses it has for containers."""
        return (1 << 32 - self.prefix) - 3

    @property
    def value(self) -> str:
        """What tuning sets `SYSCTL` to."""
        return str(20 + self.number)

    @property
    def plugins(self) -> tuple[str, ...]:
        """All that are called, the delegate too."""
        found = ["bridge", "host-local"]
        found += [name for name in ("portmap", "firewall", "tuning", "bandwidth") if self.has(name)]
        return tuple(found)

    def has(self, plugin: str) -> bool:
        return bool(getattr(self, plugin, True))

    def document(self, base: str) -> dict[str, Any]:
        """The configuration list."""
        bridge: dict[str, Any] = {
            "type": "bridge",
            "bridge": self.bridge,
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": self.subnet(base)}]]},
        }
        if self.masquerade:
            bridge |= {"ipMasq": True, "ipMasqBackend": self.masquerade}
        plugins = [bridge]
        if self.portmap:
            capabilities = {"portMappings": True}
            plugins.append(
                {"type": "portmap", "backend": self.portmap, "capabilities": capabilities}
            )
        if self.firewall:
            plugins.append({"type": "firewall", "backend": self.firewall})
        if self.tuning:
            key = SYSCTL.replace("/", ".")
            own = "net.ipv4.conf.IFNAME.igmpv3_unsolicited_report_interval"
            sysctl = {own: "5000", key: self.value}
            plugins.append({"type": "tuning", "sysctl": sysctl})
        if self.bandwidth:
            rate, burst = 10**9, 10**8
            plugins.append(
                {
                    "type": "bandwidth",
                    "ingressRate": rate,
                    "ingressBurst": burst,
                    "egressRate": rate,
                    "egressBurst": burst,
                }
            )
        return {"cniVersion": self.version, "name": self.name, "plugins": plugins}


@dataclass
class Attachment:
    """One that ADD made. net: the configuration it was made with; generation: of the namespace."""

    net: Net
    container: str
    interface: str
    slot: str
    generation: int
    ports: tuple[int, ...]
    address: str = ""  # "" for one of which no one knows more than its name
    mac: str = ""
    outer: str = ""  # the host's end of the pair
    state: str = ALIVE
    by: str = ""
    also: set[str] = field(default_factory=set)  # slots where something of a half may be, too
    lost: set[str] = field(default_factory=set)

    @property
    def key(self) -> Key:
        return self.net.name, self.container, self.interface

    @property
    def name(self) -> str:
        """As services give it."""
        return "/".join(self.key)

    @property
    def tag(self) -> str:
        """What comments and aliases of what it owns start with."""
        return tag_of(*self.key)

    @property
    def backends(self) -> set[str]:
        """Of the rules that it has."""
        net = self.net
        return {net.masquerade, net.firewall, net.portmap if self.ports else ""} - {""}

    @property
    def masqueraded_as(self) -> str:
        """What the machine beyond sees it as."""
        return HOST_TO_FAR if self.net.masquerade else self.address

    def is_sound(self, *but: str) -> bool:
        """Whether it lives and has lost nothing, but for some things."""
        return self.state == ALIVE and not self.lost.difference(but)


@dataclass
class Model:
    """All there is. slots: the generation of each container's namespace, None for none; broken: how
    a plugin's executable fails, by its name; drops: whether the host forwards nothing but what its
    firewall accepts."""

    base: str
    nets: dict[str, Net]
    drops: bool = False
    slots: dict[str, int | None] = field(default_factory=dict)
    attachments: dict[Key, Attachment] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    generations: int = 0
    bridges: set[str] = field(default_factory=set)
    used: set[tuple[str, str]] = field(default_factory=set)  # bridges with their subnets
    unsettled: set[int] = field(default_factory=set)  # generations whose `SYSCTL` may be any
    freed: dict[str, Net] = field(default_factory=dict)  # networks of who had addresses before
    theirs: set[str] = field(default_factory=set)  # addresses that the reference's ADD has given
    untracked: set[str] = field(default_factory=set)  # addresses that the reference freed

    def __post_init__(self) -> None:
        self.bridges |= {net.bridge for net in self.nets.values()}

    def living(self) -> list[Attachment]:
        return [each for each in self.attachments.values() if each.state == ALIVE]

    def remains(self) -> list[Attachment]:
        """Attachments of which anything may be left."""
        return [each for each in self.attachments.values() if each.state != ALIVE]

    def of(self, network: str) -> list[Attachment]:
        return [each for each in self.attachments.values() if each.net.name == network]

    def appear(self, slot: str) -> None:
        self.generations += 1
        self.slots[slot] = self.generations

    def vanish(self, slot: str) -> None:
        for each in self.attachments.values():
            if each.slot == slot and each.generation == self.slots[slot]:
                each.state = ORPHAN
        self.slots[slot] = None

    def attach(self, one: Attachment) -> None:
        """It is attached, the last of all."""
        self.attachments.pop(one.key, None)
        if one.by == REFERENCE and any(
            one.address == other.address and "lease" in other.lost for other in self.remains()
        ):
            one.lost.add("address")
        for other in self.living():
            if one.state != ALIVE:
                continue
            if one.address == other.address and "lease" in other.lost:
                one.lost.add("address")
                other.lost.add("address")
            if "rules" in other.lost and set(one.ports) & set(other.ports):
                other.lost.add("port")
        self.attachments[one.key] = one
        self.untracked.discard(one.address)
        if one.by == REFERENCE:
            self.theirs.add(one.address)
        if one.state == ALIVE:
            self.used.add((one.net.bridge, one.net.subnet(self.base)))

    def begin(self, one: Attachment) -> None:
        """An ADD of it was not finished; one that lives is not touched by that."""
        self.used.add((one.net.bridge, one.net.subnet(self.base)))  # the bridge stays
        before = self.attachments.get(one.key)
        if before is None:
            self.attach(one)
        elif before.state != ALIVE:
            if self.slots.get(before.slot) == before.generation:
                # The rest of it may be there, where another ADD elsewhere would be refused.
                one.also = before.also | {one.slot}
                one.slot, one.generation = before.slot, before.generation
            one.lost |= before.lost
            # Where its lease was lost it may have been given another one.
            one.address = "" if "lease" in before.lost else before.address
            one.ports = tuple({*before.ports, *one.ports})
            self.attach(one)

    def detach(self, key: Key) -> None:
        """Nothing is left of it; that there was nothing is fine."""
        one = self.attachments.pop(key, None)
        if one is None:
            return
        self.freed[one.address] = one.net
        if one.lost >= {"rules", "cache", "settings"}:
            self.untracked.add(one.address)
        if one.generation == self.slots.get(one.slot) and "settings" in one.lost:
            self.unsettled.add(one.generation)

    def is_unannounced(self, one: Attachment) -> bool:
        """Whether containers may send to the MAC address of who had its address before."""
        return one.address in self.freed and one.address in self.theirs

    def concerned(self, network: str, key: Key) -> tuple[Net, ...]:
        """The configurations that a call may go by: today's, and that of the ADD."""
        known = self.attachments.get(key)
        return (self.nets[network], known.net) if known else (self.nets[network],)

    def is_contended(self, net: Net) -> bool:
        """Whether the gateway's address has been on another bridge, or another on this one."""
        own = net.bridge, net.subnet(self.base)
        rest = {(bridge, subnet.rpartition(".")[0]) for bridge, subnet in self.used - {own}}
        return any(own[0] == bridge or own[1].startswith(subnet) for bridge, subnet in rest)

    def edit(self, network: str, **changes: Any) -> None:
        self.nets[network] = replace(self.nets[network], **changes)
        self.bridges.add(self.nets[network].bridge)

    def is_hit(self, *nets: Net) -> bool | None:
        """Whether a call for these configurations meets a broken plugin; None for perhaps."""
        hits = {bool(self.broken.keys() & set(net.plugins)) for net in nets}
        return hits.pop() if len(hits) == 1 else None

    def holder(self, port: int) -> list[Attachment]:
        """Who has a port of the host, or may have."""
        return [each for each in self.attachments.values() if port in each.ports]

    def beyond_is_open(self, attachment: Attachment) -> bool:
        """Whether the host forwards what it sends, and what comes in by its ports."""
        return not self.drops or attachment.net.firewall == IPTABLES

    def sharing(self, one: Attachment, port: int) -> list[Attachment]:
        """The container's attachments that have a port, which may lead to any of them."""
        return [each for each in self.attachments.values()
                if port in each.ports and each.container == one.container]  # fmt: skip

    def is_overruled(self, one: Attachment) -> bool:
        """Whether a later one has set the container's `SYSCTL` to something else."""
        there = self.attachments.values()
        same = [each for each in there if each.slot == one.slot and each.net.tuning]
        return one.net.tuning and any(each.net.value != one.net.value for each in same)

    def value(self, slot: str) -> str | None:
        """What `SYSCTL` of a container must be; None if that cannot be known."""
        own = [each for each in self.attachments.values() if each.slot == slot]
        if self.slots[slot] in self.unsettled:
            return None
        if any(each.state != ALIVE or "settings" in each.lost for each in own):
            return None
        tuned = [each for each in own if each.net.tuning]
        return tuned[-1].net.value if tuned else ""


def tag_of(network: str, container: str, interface: str) -> str:
    """The two hashes that name an owner, as the reference plugins make them."""
    return f"{_hash(network)}-{_hash(f'{interface}:{container}')}"


def chains_of(network: str, container: str) -> set[str]:
    """The chains of iptables that are one container's."""
    digits = hashlib.sha512((network + container).encode()).hexdigest()
    return {(prefix + digits)[:28] for prefix in ("CNI-", "CNI-DN-", "CNI-SN-")}


def _hash(text: str) -> str:
    return hashlib.sha512(text.encode()).hexdigest()[:16]


__all__ = ["FAR", "Attachment", "Model", "Net"]
