"""Kinds of steps that an ADD could not make again over what is left of them.

`MENDS` has a function for each such kind; all others are made again by their module's `apply`.
`CHECKS` looks for what a repair puts back though CHECK can do without. They belong to the modules
in `steps`, whose parts they use, and stand here so that no plugin's process loads them. Used by
`repair`.
"""

from __future__ import annotations

import errno
from _socket import AF_INET6

from pycni.kernel import address as addresses
from pycni.kernel import iptables, nfnetlink
from pycni.kernel import link as links
from pycni.kernel import route as routes
from pycni.kernel.constant_rules import TABLE
from pycni.kernel.executor import handler
from pycni.kernel.netlink.codec import Request
from pycni.kernel.netlink.constants import RT_SCOPE_LINK
from pycni.kernel.netlink.errors import NetlinkError
from pycni.kernel.nfnetlink import NFPROTO_INET
from pycni.kernel.route import Route
from pycni.kernel.steps import no_ipv6
from pycni.kernel.steps.bridge import plug_in
from pycni.plan.steps import SANDBOX
from pycni.spec.errors import ALREADY_EXISTS, CHECK_FAILED, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pycni.kernel import tc
    from pycni.kernel.context import Kernel, Site
    from pycni.kernel.link import Link
    from pycni.plan import steps

AGAIN = "delete the attachment and add it again"


def require_own(step: steps.VethPair, kernel: Kernel, *, marked: bool) -> None:
    """Raise a CNIError if the sandbox's interface was made for another attachment.

    marked: or by another project's plugin, which does not mark it.
    """
    path = kernel.site(SANDBOX).path
    inner = kernel.site(SANDBOX).find(step.name)
    outer = kernel.host.find(inner.link) if inner is not None and inner.link else None
    if outer is None or outer.kind != "veth":
        return
    tag = outer.alias.partition(",")[0]
    if tag not in ("", step.owner.tag):
        raise CNIError(
            CHECK_FAILED,
            f"{step.name} of {path} belongs to another attachment",
            f"{outer.name} is marked {outer.alias}: the namespace is not that of "
            f"{step.owner.container_id} any more",
        )
    if marked and not tag:
        raise CNIError(
            CHECK_FAILED,
            f"{step.name} of {path} was made by a plugin that is not pycni's",
            "whose DEL would leave what pycni puts back: name the directory that the runtime takes "
            "its plugins from, such as --plugin-dir /opt/cni/bin",
        )


# --- links ---------------------------------------------------------------------------------------


def _bridge(step: steps.Bridge, kernel: Kernel) -> None:
    handler(step.kind).apply(step, kernel)
    found = kernel.host.link(step.name)
    if step.vlan_filtering and not found.vlan_filtering:
        made = links.bridge(step.name, vlan_filtering=True)
        # The same message changes a link that is there, if it may not make one.
        kernel.host.request(Request(made.kind, 0, made.body, f"set link {step.name}: filter VLANs"))


def _vlan_gateway(step: steps.VLANGateway, kernel: Kernel) -> None:
    host = kernel.host
    found = host.find(step.name)
    if found is None or found.kind != "veth":
        handler(step.kind).apply(step, kernel)
        return
    port = host.find(found.link)
    if port is None:
        raise CNIError(
            ALREADY_EXISTS,
            f"the bridge's end of {step.name} is not on the host",
            f"remove {step.name}, and repair again",
        )
    change = links.update(port, master=host.link(step.bridge).index, up=True)
    plug_in(host, step.bridge, change)
    from pycni.kernel.steps import port_vlans

    port_vlans.assign(host, port, step.vlans)
    host.request(links.update(found, up=True))


def _veth(step: steps.VethPair, kernel: Kernel) -> None:
    host, sandbox = kernel.host, kernel.site(SANDBOX)
    inner = sandbox.find(step.name)
    if inner is None:
        handler(step.kind).apply(step, kernel)
        return
    outer = host.find(inner.link) if inner.kind == "veth" and inner.link else None
    if outer is None or outer.link != inner.index:
        raise CNIError(
            CHECK_FAILED, f"{step.name} is not the end of a pair with the host any more", AGAIN
        )
    if step.mac and inner.mac != step.mac:
        sandbox.request(links.update(inner, mac=step.mac))
    port = step.port
    if port is None:
        host.request(links.update(outer, up=True))
        return
    master = host.link(port.bridge).index
    if outer.master != master:
        plug_in(host, port.bridge, links.update(outer, master=master))
    no_ipv6.switch_off(host, outer.name)
    host.request(links.update(outer, up=True, hairpin=port.hairpin, isolated=port.isolated))
    if port.vlans:
        from pycni.kernel.steps import port_vlans

        if port_vlans.differences(host, outer, port.vlans):
            port_vlans.assign(host, outer, port.vlans)


def _sub_link(step: steps.SubLink, kernel: Kernel) -> None:
    if kernel.site(SANDBOX).find(step.name) is not None:
        raise CNIError(CHECK_FAILED, f"what a {step.type} is made with lasts for its life", AGAIN)
    handler(step.kind).apply(step, kernel)


def _tap(step: steps.Tap, kernel: Kernel) -> None:
    sandbox = kernel.site(SANDBOX)
    found = sandbox.find(step.name)
    if found is None:
        handler(step.kind).apply(step, kernel)
    elif found.kind == "tun" and step.bridge:
        change = links.update(found, master=sandbox.link(step.bridge).index)
        plug_in(sandbox, step.bridge, change)


def _move_device(step: steps.MoveDevice, kernel: Kernel) -> None:
    sandbox = kernel.site(SANDBOX)
    found = sandbox.find(step.name)
    if found is None:
        handler(step.kind).apply(step, kernel)
    elif step.device.name:
        sandbox.request(links.update(found, alias=step.device.name))
    else:
        raise CNIError(CHECK_FAILED, "nobody else knows the name that the host had for it", AGAIN)


def _vrf(step: steps.VRFMember, kernel: Kernel) -> None:
    site = kernel.site(SANDBOX)
    found = site.find(step.vrf)
    if found is not None and found.kind == "vrf" and not found.is_up:
        site.request(links.update(found, up=True))
    if found is None or site.link(step.link).master != found.index:
        handler(step.kind).apply(step, kernel)


def _gateway_address(step: steps.GatewayAddress, kernel: Kernel) -> None:
    handler(step.kind).apply(step, kernel)
    host = kernel.host
    link = host.link(step.link)
    found = addresses.dump(host.netlink, link.index, AF_INET6)
    if any(not item.is_ipv4 for item in step.addresses) and not any(
        item.network.address.is_link_local for item in found
    ):
        # Whoever flushed the addresses took this one too, without which nobody finds neighbours.
        # The kernel makes it when the way of making it is set to another than it was.
        key = f"net/ipv6/conf/{step.link}/addr_gen_mode"
        mode = host.write_sysctl(key, "1")
        host.write_sysctl(key, mode if mode != "1" else "0")


# --- routes --------------------------------------------------------------------------------------


def _route(step: steps.Route, kernel: Kernel) -> None:
    try:
        handler(step.kind).apply(step, kernel)
    except NetlinkError as error:
        # Its gateway cannot be reached: the kernel's own route to the neighbours has gone too.
        if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH) or step.gw is None:
            raise
        site = kernel.site(step.where)
        index = site.index(step.link)
        found = [item.network for item in addresses.dump(site.netlink, index, step.gw.family)]
        neighbours = next((network for network in found if network.contains(step.gw)), None)
        if neighbours is None:
            raise
        scope = RT_SCOPE_LINK if neighbours.is_ipv4 else 0
        own = Route(neighbours.network, index, source=neighbours.address, scope=scope)
        site.request(routes.append(own))
        handler(step.kind).apply(step, kernel)


def _source_routing(step: steps.SourceRouting, kernel: Kernel) -> None:
    from pycni.kernel.steps import source_routing as sbr
    from pycni.kernel.steps.free_table import free_table
    from pycni.kernel.steps.sandbox_lock import SandboxLock

    site = kernel.site(SANDBOX)
    index = site.index(step.link)
    changes = sbr.Changes(site)
    with SandboxLock(site):
        if step.table is not None:
            for source in step.sources:
                if not _leads(site, source, step.table):
                    sbr.lead_to(source, step.table, changes)
            return
        present = [item for item in routes.dump(site.netlink) if item.leaves_by(index)]
        present.sort(key=lambda item: bool(item.gateways))
        for source in step.sources:
            table = _own_table(site, source, index) or free_table(site.netlink, sbr.FIRST_TABLE)
            there = routes.dump(site.netlink, source.address.family, table=table)
            known = [item.dst for item in there if item.leaves_by(index)]
            for item in sbr.routes_of(source, present, index):
                if item.dst not in known:
                    site.request(routes.append(item.replace(table=table)))
            if not _leads(site, source, table):
                sbr.lead_to(source, table, changes)
        hinted = [
            sbr.hint_of(source, present, index, changes) for source in step.sources if step.hints
        ]
        for item in present:
            if item in hinted or item.dst.address.is_link_local:
                continue
            if not (step.hints and sbr.is_on_link(item)):
                site.request(routes.delete(item))


def _leads(site: Site, source: steps.Source, table: int) -> bool:
    from pycni.kernel.steps import source_routing as sbr

    return any(rule.table == table for rule in sbr.rules_from(site, source.address.address))


def _own_table(site: Site, source: steps.Source, index: int) -> int:
    """The table that the source's rule leads to; without, one that was left with its routes."""
    from pycni.kernel import rule as rules
    from pycni.kernel.steps import source_routing as sbr

    for rule in sbr.rules_from(site, source.address.address):
        if rule.table not in routes.SYSTEM_TABLES:
            return int(rule.table)
    family = source.address.family
    used = {rule.table for rule in rules.dump(site.netlink, family)} | set(routes.SYSTEM_TABLES)
    for item in routes.dump(site.netlink, family, table=0, index=index):
        if item.table not in used and sbr.belongs_to(item, source):
            return int(item.table)
    return 0


# --- traffic control -----------------------------------------------------------------------------


def _shaping(step: steps.Shaping, kernel: Kernel) -> None:
    from pycni.kernel import tc
    from pycni.kernel.steps import shaping as shape

    host = kernel.host
    outer = shape.host_end(step, kernel)

    def limit(link: Link, wanted: steps.Limit, towards: bool) -> None:
        if not shape.limit_differences(step, host, link, wanted):
            return
        found = tc.qdisc(host.netlink, link.index)
        if found is not None and shape.is_limit(found):
            host.request(tc.delete_qdisc(found))
        shape.set_limit(step, host, link, wanted, towards=towards)

    if step.ingress is not None:
        limit(outer, step.ingress, True)
    if step.egress is None:
        return
    ifb = shape.find_ifb(step.owner, kernel)
    if ifb is None:
        ifb = shape.make_ifb(step, host, outer)
    if not ifb.is_up:
        host.request(links.update(ifb, up=True))
    limit(ifb, step.egress, False)
    parent = shape.ingress_parent(host, outer)
    found = tc.filters(host.netlink, outer.index, parent) if parent is not None else []
    if any(item.redirect == ifb.index for item in found):
        return
    if parent is not None and any(_leads_nowhere(item, host) for item in found):
        host.request(tc.delete_redirection(outer.index, parent))
    shape.redirect_to(host, outer, ifb, [])


def _leads_nowhere(found: tc.Filter, host: Site) -> bool:
    """Whether a filter is one of ours whose ifb has gone: its target is 0 then."""
    ours = found.kind == "u32" and found.priority == 1 and found.classid == 1 << 16 | 1
    return ours and (not found.redirect or host.find(found.redirect) is None)


# --- rules ---------------------------------------------------------------------------------------


def _firewall(step: steps.Firewall, kernel: Kernel) -> None:
    """As ADD does, but never taking rules of iptables for missing because the set was flushed."""
    from pycni.kernel.steps import firewall as fw

    netfilter = kernel.host.netfilter
    backend = fw.chosen(step.backend, fw.families_of(step), netfilter)
    fw.register(step, netfilter, filters=backend == "nftables")
    if backend == "iptables":
        from pycni.kernel.steps import firewall_iptables

        firewall_iptables.apply(step, netfilter, fresh=False)
    elif backend == "ipset":
        fw.apply_sets(step, netfilter)
    elif backend == "firewalld":
        fw.apply_firewalld(step)


def _unregistered(step: steps.Firewall, kernel: Kernel) -> list[str]:
    """Addresses that rules of another backend let through, and GC would not find."""
    from pycni.kernel.steps import firewall as fw

    netfilter = kernel.host.netfilter
    if not step.addresses or not nfnetlink.supported(netfilter):
        return []
    if fw.chosen(step.backend, fw.families_of(step), netfilter) == "nftables":
        return []  # CHECK tells
    return [
        f"nftables: {address} is not in set inet {TABLE} {fw.SETS[address.family]}, "
        "by which GC knows whose it is"
        for address in step.addresses
        if nfnetlink.element(
            netfilter, NFPROTO_INET, TABLE, fw.SETS[address.family], address.packed
        )
        is None
    ]


def _masquerade(step: steps.Masquerade, kernel: Kernel) -> None:
    """As ADD does, but with the container's own chain afresh: the order of its rules counts."""
    if step.backend != "iptables":
        handler(step.kind).apply(step, kernel)
        return
    from pycni.kernel.steps import masquerade_iptables

    chain = step.owner.chain()
    for family, rules in masquerade_iptables.rules_of(step).items():
        table = masquerade_iptables.TABLE
        present = iptables.present(kernel.host.netfilter, family, table, [chain])
        own = [rule for rule in rules if rule.startswith(f"-A {chain} ")]
        lines = [rule for rule in rules if rule not in own and rule not in present]
        if any(rule not in present for rule in own):
            lines = [f":{chain} - [0:0]", *own, *lines]
        if lines:
            iptables.restore(family, table, lines)


MENDS: Mapping[str, Callable[[Any, Kernel], None]] = {
    "bridge": _bridge,
    "vlan_gateway": _vlan_gateway,
    "gateway_address": _gateway_address,
    "veth": _veth,
    "sub_link": _sub_link,
    "tap": _tap,
    "move_device": _move_device,
    "vrf": _vrf,
    "route": _route,
    "source_routing": _source_routing,
    "shaping": _shaping,
    "firewall": _firewall,
    "masquerade": _masquerade,
}
CHECKS: Mapping[str, Callable[[Any, Kernel], list[str]]] = {"firewall": _unregistered}
