"""The steps a plan is made of: one class for each thing that can exist for an attachment.

A step names things (links by name, sandbox or host by `where`); what only the kernel knows (an
index, a MAC address) the executor looks up. `kind` is the module in `pycni.steps` that
makes, checks and removes it; of a step declared elsewhere, its module's whole name. `follows_link`
marks what the kernel removes together with the attachment's interface, so that DEL need not;
`makes_link` marks the making of that interface. `shared` marks what other attachments rely on as
well, and DEL leaves. `repeated` marks what a repair does again once it has changed an interface,
since it shows in no state. `unrepairable` says why what is there under the step's name may be
another thing, which only a DEL and an ADD replace.
"""

from __future__ import annotations

from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.spec.ip import IPAddress, IPNetwork
    from pycni.spec.owner import Owner

HOST = "host"
SANDBOX = "sandbox"


class Step(Record):
    """Base of all steps."""

    kind: ClassVar[str] = ""
    shared: ClassVar[bool] = False
    follows_link: ClassVar[bool] = False
    makes_link: ClassVar[bool] = False
    repeated: ClassVar[bool] = False
    unrepairable: ClassVar[str] = ""


class Bridge(Step):
    """A bridge on the host, shared by a network's attachments: made when missing, never removed.

    mtu: bytes, 0 for the kernel's choice. An existing bridge keeps its own, and its snooping.
    """

    kind: ClassVar[str] = "bridge"
    shared: ClassVar[bool] = True

    name: str
    mtu: int = 0
    vlan_filtering: bool = False
    promiscuous: bool = False
    mcast_snooping: bool = True


class VLANs(Record):
    """VLAN membership of a bridge port.

    pvid: the untagged VLAN, 0 for none asked; trunk: tagged VLANs as (first, last) ranges;
    keep_default: leave what the bridge gave the port when it joined.
    """

    pvid: int = 0
    trunk: tuple[tuple[int, int], ...] = ()
    keep_default: bool = False

    def __bool__(self) -> bool:
        return bool(self.pvid or self.trunk)


class BridgePort(Record):
    """How the host end of a pair is plugged into a bridge."""

    bridge: str
    hairpin: bool = False
    isolated: bool = False
    vlans: VLANs = VLANs()


class VethPair(Step):
    """A pair of linked interfaces, one in the sandbox and one on the host.

    The host end's name is derived from the owner, so a plan stays pure and DEL finds it without a
    sandbox. mtu: bytes, 0 for the kernel's choice; mac: of the sandbox end, "" for a random one.
    """

    kind: ClassVar[str] = "veth"
    makes_link: ClassVar[bool] = True
    unrepairable: ClassVar[str] = "it is not the end of a pair with the host any more"

    owner: Owner
    name: str
    host_name: str
    mtu: int = 0
    mac: str = ""
    port: BridgePort | None = None


class LinkUp(Step):
    """An interface is administratively up.

    link_local: whether the kernel gives it an IPv6 link-local address then, as it does by itself.
    """

    kind: ClassVar[str] = "link_up"
    follows_link: ClassVar[bool] = True

    where: str
    link: str
    link_local: bool = True


class PortRunning(Step):
    """The host end forwards: waited for by the kernel's own notification, never polled."""

    kind: ClassVar[str] = "port_running"
    follows_link: ClassVar[bool] = True
    repeated: ClassVar[bool] = True

    link: str
    timeout_ms: int = 5000


class Sysctl(Step):
    """A kernel setting, keys as sysctl names them.

    required: whether the kernel must have the key and take the value; else ADD goes on without.
    Where the key exists, CHECK expects the value in either case. lasting: whether the value matters
    after ADD; if not, CHECK does not look at it.
    """

    kind: ClassVar[str] = "sysctl"
    follows_link: ClassVar[bool] = True
    repeated: ClassVar[bool] = True

    where: str
    key: str
    value: str
    required: bool = False
    lasting: bool = True


class Address(Step):
    """An address of an interface. `dad` asks the kernel to probe an IPv6 address for duplicates.

    on_link: whether the other addresses of its network are neighbours, so that the kernel makes a
    route to it.
    """

    kind: ClassVar[str] = "address"
    follows_link: ClassVar[bool] = True

    where: str
    link: str
    address: IPNetwork
    dad: bool = False
    on_link: bool = True


class GratuitousARP(Step):
    """Neighbours learn that a link's addresses are here now: they may remember an earlier holder.

    Needs the settings arp_notify and ndisc_notify, and a link that carries traffic.
    """

    kind: ClassVar[str] = "gratuitous_arp"
    follows_link: ClassVar[bool] = True
    repeated: ClassVar[bool] = True

    where: str
    link: str


class DADFinished(Step):
    """No IPv6 address of a link is tentative: duplicate address detection has come to an end.

    Waited for by the kernel's own notification, never polled.
    """

    kind: ClassVar[str] = "dad_finished"
    follows_link: ClassVar[bool] = True
    repeated: ClassVar[bool] = True

    where: str
    link: str
    timeout_ms: int = 10000


class GatewayAddress(Step):
    """The gateway addresses of a link that attachments share; they stay when those go.

    force: take away other addresses that conflict, instead of failing. A conflict is another IPv4
    address, or an IPv6 address whose network overlaps.
    """

    kind: ClassVar[str] = "gateway_address"
    shared: ClassVar[bool] = True

    link: str
    addresses: tuple[IPNetwork, ...]
    force: bool = False


class VLANGateway(Step):
    """A veth on the host, one end in a VLAN of the bridge, the other to carry a gateway's address.

    Shared by the VLAN's attachments: made when missing, never removed.
    """

    kind: ClassVar[str] = "vlan_gateway"
    shared: ClassVar[bool] = True

    name: str
    bridge: str
    vlans: VLANs


class Route(Step):
    """A route. Fields as in a result's route; `link` is the outgoing interface.

    scope: a number of linux/rtnetlink.h, None for the kernel's default; src: preferred source.
    """

    kind: ClassVar[str] = "route"
    follows_link: ClassVar[bool] = True

    where: str
    link: str
    dst: IPNetwork
    gw: IPAddress | None = None
    src: IPAddress | None = None
    priority: int = 0
    table: int | None = None
    scope: int | None = None
    mtu: int = 0
    advmss: int = 0


class Forwarding(Step):
    """The host forwards packets of a family (AF_INET or AF_INET6). Stays: others rely on it."""

    kind: ClassVar[str] = "forwarding"
    shared: ClassVar[bool] = True

    family: int


class Masquerade(Step):
    """Packets from these addresses to outside their subnet leave with the host's address.

    backend: "nftables", "iptables", or "" for nftables where the host has it.
    """

    kind: ClassVar[str] = "masquerade"

    owner: Owner
    addresses: tuple[IPNetwork, ...]
    backend: str = ""


class SpoofGuard(Step):
    """Frames that enter the bridge from this host link carry this MAC address, or are dropped.

    mac: "" for the one noted at ADD; an ADD always gives it.
    """

    kind: ClassVar[str] = "spoof_guard"

    owner: Owner
    host_link: str
    mac: str = ""


class AllowedMAC(Step):
    """An earlier plugin's spoof guard of one of these host links, if there is one, lets it in."""

    kind: ClassVar[str] = "allowed_mac"
    follows_link: ClassVar[bool] = True

    owner: Owner
    host_links: tuple[str, ...]
    mac: str


class LinkSettings(Step):
    """Attributes of an interface that exists; what is not given is left alone.

    mac: "" for not given; mtu: bytes, 0 for not given; the others: None for not given.
    """

    kind: ClassVar[str] = "link_settings"
    follows_link: ClassVar[bool] = True

    where: str
    link: str
    mac: str = ""
    mtu: int = 0
    promiscuous: bool | None = None
    allmulti: bool | None = None
    txqlen: int | None = None


class Source(Record):
    """An address that packets leave with, in its subnet, and the gateway for what leaves that."""

    address: IPNetwork
    gateway: IPAddress | None = None


class SourceRouting(Step):
    """Packets from these addresses of an interface are routed by a table of their own.

    Each address gets an unused table with the interface's routes, and a rule that leads there; the
    routes leave the main table. hints: keep the subnets' routes there, with the address as source.
    table: only add rules, which lead to this table. defaults: families whose default route by this
    interface was in the main table before, so that removing puts it back there with the others.
    """

    kind: ClassVar[str] = "source_routing"

    link: str
    sources: tuple[Source, ...]
    hints: bool = False
    table: int | None = None
    defaults: tuple[int, ...] = ()


class VRFMember(Step):
    """An interface of the sandbox is in a VRF there, which is made for its first member.

    table: the VRF's routing table, 0 for an unused one.
    """

    kind: ClassVar[str] = "vrf"

    vrf: str
    link: str
    table: int = 0


class Limit(Record):
    """A token bucket. rate: bits a second; burst: bits."""

    rate: int
    burst: int


class Shaping(Step):
    """The traffic of a sandbox's veth is limited, on its host end.

    ingress: towards the sandbox, egress: from it; each None for no limit. host_links: the host
    interfaces that the end must be one of. shaped: only traffic with these networks is limited;
    unshaped: all but that with these.
    """

    kind: ClassVar[str] = "shaping"

    owner: Owner
    link: str
    host_links: tuple[str, ...]
    ingress: Limit | None = None
    egress: Limit | None = None
    shaped: tuple[IPNetwork, ...] = ()
    unshaped: tuple[IPNetwork, ...] = ()


class ChildLink(Step):
    """An interface of the sandbox on top of another, its master; a dummy has none.

    type: macvlan, ipvlan, vlan or dummy. master: a name, "" for the interface that the default
    route leaves by; master_in: HOST or SANDBOX. mode: of a macvlan or ipvlan, as they name it.
    mtu: bytes, 0 for the master's; mac: "" for the kernel's choice; broadcast_queue: frames, of a
    macvlan, 0 for the kernel's choice.
    """

    kind: ClassVar[str] = "child_link"
    makes_link: ClassVar[bool] = True
    unrepairable: ClassVar[str] = "what it is made with lasts for its life"

    name: str
    type: str
    master: str = ""
    master_in: str = HOST
    mode: str = ""
    vlan_id: int = 0
    mtu: int = 0
    mac: str = ""
    broadcast_queue: int = 0


class Tap(Step):
    """A tap in the sandbox: an interface whose other end a program holds, such as a VM.

    owner, group: numbers of who may open it, None for anyone; selinux_context: of the tap, "" for
    the plugin's own; bridge: of the sandbox, to plug it into, "" for none. mtu and mac as above.
    """

    kind: ClassVar[str] = "tap"
    makes_link: ClassVar[bool] = True

    name: str
    mtu: int = 0
    mac: str = ""
    owner: int | None = None
    group: int | None = None
    multi_queue: bool = False
    selinux_context: str = ""
    bridge: str = ""


class Device(Record):
    """A network device of the host, identified by the first of these that is not empty.

    name: of its interface; mac: its hardware address; path: below /sys/devices; id: an address on
    the PCI or the auxiliary bus; pci: an address on the PCI bus.
    """

    name: str = ""
    mac: str = ""
    path: str = ""
    id: str = ""
    pci: str = ""

    def __bool__(self) -> bool:
        return bool(self.name or self.mac or self.path or self.id or self.pci)


class MoveDevice(Step):
    """A device of the host is in the sandbox, as interface `name`.

    Its own name is kept in its alias, and is what it gets back.
    """

    kind: ClassVar[str] = "move_device"
    makes_link: ClassVar[bool] = True
    unrepairable: ClassVar[str] = "no one else knows the name that the host had for it"

    name: str
    device: Device


class PortMapping(Record):
    """A port of the host that leads to one of the container. protocol: tcp, udp or sctp.

    host_ip: the one address of the host it is for, None for all; the unspecified address of a
    family stands for all of that family.
    """

    protocol: str
    host_port: int
    container_port: int
    host_ip: IPAddress | None = None


class PortMap(Step):
    """Ports of the host lead to the container's addresses, of which there is one a family.

    backend: "nftables", "iptables", or "" for nftables where the host has it. snat: what comes
    from the container's subnet or localhost is masqueraded; masquerade_all: everything is.
    mark_bit, mark_chain: how iptables marks that; conditions: further matches in the words of the
    backend. Without mappings or addresses only for removal.
    """

    kind: ClassVar[str] = "port_map"

    owner: Owner
    mappings: tuple[PortMapping, ...] = ()
    addresses: tuple[IPNetwork, ...] = ()
    backend: str = ""
    snat: bool = True
    masquerade_all: bool = False
    mark_bit: int = 13
    mark_chain: str = ""
    conditions4: tuple[str, ...] = ()
    conditions6: tuple[str, ...] = ()


class RouteLocalnet(Step):
    """Packets from 127.0.0.0/8 may leave by the link that leads to an address. Stays."""

    kind: ClassVar[str] = "route_localnet"
    shared: ClassVar[bool] = True

    address: IPAddress


class Firewall(Step):
    """The host forwards packets from these addresses, and the answers to them.

    backend: "iptables", "firewalld", "nftables", or "" for the one that decides on this host;
    admin_chain: the chain of iptables whose rules come first; zone: of firewalld.
    """

    kind: ClassVar[str] = "firewall"

    owner: Owner
    addresses: tuple[IPAddress, ...] = ()
    backend: str = ""
    admin_chain: str = "CNI-ADMIN"
    zone: str = "trusted"


class IngressPolicy(Step):
    """Packets from a bridge enter no other bridge with a policy; nor, if isolated, the same one.

    families: AF_INET, AF_INET6; backend: as for `Firewall`. Stays: the bridge's containers share
    it.
    """

    kind: ClassVar[str] = "ingress_policy"
    shared: ClassVar[bool] = True

    bridge: str
    isolated: bool
    families: tuple[int, ...]
    backend: str = ""


class PortIsolation(Step):
    """Of these links, those that are ports of a bridge reach no other container through it.

    What outlives such a link is removed with the owner's `Firewall`.
    """

    kind: ClassVar[str] = "port_isolation"
    follows_link: ClassVar[bool] = True

    owner: Owner
    bridge: str
    links: tuple[str, ...]
