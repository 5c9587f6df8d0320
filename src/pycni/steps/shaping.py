"""Limits for the traffic of a sandbox's veth, on the host (`plan.steps.Shaping`).

    towards the sandbox:  host end, root tbf
    from the sandbox:     host end, ingress qdisc: u32 filter, redirect to the ifb: root tbf

Handles, names and figures are the reference's. Where only some networks are limited, or all but
some, htb with one limited class takes the place of tbf.
"""

from __future__ import annotations

import errno
import time

from pycni.kernel import link as links
from pycni.kernel import link_kinds, tc
from pycni.kernel.netlink.errors import NetlinkError
from pycni.plan.steps import SANDBOX
from pycni.spec.errors import ALREADY_EXISTS, INVALID_CONFIG, CNIError
from pycni.spec.owner import hashed_name
from pycni.steps import ownership
from pycni.steps.executor import give_up, undo_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.plan.steps import Limit, Shaping
    from pycni.spec.owner import Owner, Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns

LIMITED = 0x30  # the class 1:30
DIRECT = 0
_TO_MARK = 0.05  # seconds: far more than an ADD takes to mark an ifb that it made
FRAME_HEADER = 14  # bytes (ETH_HLEN of linux/if_ether.h)
FIRST_PRIORITY = 15  # of filters that assign classes


def apply(step: Shaping, kernel: HostAndSandbox) -> Undo:
    host = kernel.host
    outer = host_end(step, kernel)
    _require_room(step, outer)
    undo: list[Undo] = []
    try:
        if step.ingress is not None:
            set_limit(step, host, outer, step.ingress, towards=True)
            undo.append(lambda: _lift(host, outer))
        if step.egress is not None:
            ifb = make_ifb(step, host, outer)
            undo.append(lambda: host.discard(ifb))
            set_limit(step, host, ifb, step.egress, towards=False)
            redirect_to(host, outer, ifb, undo)
    except BaseException:
        give_up(undo, kernel)
        raise
    return lambda: undo_all(undo)


def _require_room(step: Shaping, outer: Link) -> None:
    """Refuse a burst that no full frame fits in: tbf drops each that does not. Raises CNIError."""
    if step.shaped or step.unshaped:
        return  # htb lends what is missing
    for direction, limit in (("ingress", step.ingress), ("egress", step.egress)):
        least = 0 if limit is None else tc.least_burst(limit.rate, outer.mtu + FRAME_HEADER)
        if limit is not None and limit.burst < least:
            raise CNIError(
                INVALID_CONFIG,
                f"{direction}Burst is {limit.burst} bits, too little for a frame of {outer.name}",
                f"whole frames of its MTU, {outer.mtu} bytes, would all be dropped: give "
                f"{least} bits at least",
            )


def check(step: Shaping, kernel: HostAndSandbox) -> list[str]:
    host = kernel.host
    outer = host_end(step, kernel)
    differences = []
    if step.ingress is not None:
        differences += limit_differences(step, host, outer, step.ingress)
    if step.egress is not None:
        ifb = find_ifb(step.owner, kernel)
        if ifb is None:
            return [*differences, f"interface {_names(step.owner)[0]} is missing: no egress limit"]
        differences += limit_differences(step, host, ifb, step.egress)
        if not _is_redirected(host, outer, ifb):
            differences.append(f"what {outer.name} receives is not redirected to {ifb.name}")
    return differences


def repair(step: Shaping, kernel: HostAndSandbox) -> None:
    host = kernel.host
    outer = host_end(step, kernel)

    def limit(link: Link, wanted: Limit, towards: bool) -> None:
        if not limit_differences(step, host, link, wanted):
            return
        found = tc.qdisc(host.netlink, link.index)
        if found is not None and is_limit(found):
            host.request(tc.delete_qdisc(found))
        set_limit(step, host, link, wanted, towards=towards)

    if step.ingress is not None:
        limit(outer, step.ingress, True)
    if step.egress is None:
        return
    ifb = find_ifb(step.owner, kernel)
    if ifb is None:
        ifb = make_ifb(step, host, outer)
    if not ifb.is_up:
        host.request(links.update(ifb, up=True))
    limit(ifb, step.egress, False)
    parent = ingress_parent(host, outer)
    found = tc.filters(host.netlink, outer.index, parent) if parent is not None else []
    if any(item.redirect == ifb.index for item in found):
        return
    if parent is not None and any(_leads_nowhere(item, host) for item in found):
        host.request(tc.delete_redirection(outer.index, parent))
    redirect_to(host, outer, ifb, [])


def _leads_nowhere(found: tc.Filter, host: Netns) -> bool:
    """Whether a filter is one of ours whose ifb has gone: its target is 0 then."""
    ours = found.kind == "u32" and found.priority == 1 and found.classid == 1 << 16 | 1
    return ours and (not found.redirect or host.find(found.redirect) is None)


def remove(step: Shaping, kernel: HostAndSandbox) -> None:
    """Take the limits off the host end, where that is still there, and delete the ifb."""
    host = kernel.host
    ifb = find_ifb(step.owner, kernel)
    try:
        sandbox = kernel.sandbox
        outer = (
            None
            if sandbox is None
            else ownership.peer_on_host(kernel, ownership.own_link(kernel, step.link))
        )
        if outer is not None:
            found = tc.qdisc(host.netlink, outer.index)
            if step.ingress is not None and found is not None and is_limit(found):
                host.request(tc.delete_qdisc(found))
            if ifb is not None:
                _stop_redirection(host, outer, ifb)
    except NetlinkError as error:
        if error.errno != errno.ENODEV:  # its container has deleted the pair meanwhile
            raise
    finally:
        if ifb is not None:
            host.discard(ifb)


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Delete ifbs that are theirs, and what a crash left before it was marked."""
    found = [link for link in links.dump(kernel.host.netlink) if link.kind == "ifb"]
    of_reference = {_names(owner)[0] for owner in owners.listed} if found else set()
    stale = [
        link
        for link in found
        if owners.includes(link.alias) or (link.name in of_reference and not link.alias)
    ]
    unmarked = {link.index for link in found if _is_unmarked(link)}
    if unmarked:
        time.sleep(_TO_MARK)
        again = links.dump(kernel.host.netlink)
        stale += [link for link in again if link.index in unmarked and _is_unmarked(link)]
    links.delete_together(kernel.host.netlink, stale)


def _is_unmarked(link: Link) -> bool:
    """Whether it was made for bandwidth and not set up any further."""
    made = link.kind == "ifb" and link.name.startswith("bwp") and len(link.name) == 15
    return made and not link.alias and not link.is_up


def find_ifb(owner: Owner, kernel: HostAndSandbox) -> Link | None:
    """The attachment's ifb: one with its mark, or the one that the reference made."""
    names = _names(owner)
    found = [one for one in map(kernel.host.find, names) if one is not None and one.kind == "ifb"]
    for ifb in found:
        if _tag(ifb) == owner.tag:
            return ifb
    return next((ifb for ifb in found if ifb.name == names[0] and not ifb.alias), None)


def _names(owner: Owner) -> tuple[str, str]:
    """The reference's name, which a container's interfaces in one network share, and another."""
    text = owner.network + owner.container_id
    return hashed_name("bwp", text, 15), hashed_name("bwp", text + owner.ifname, 15)


def _tag(link: Link) -> str:
    return link.alias.partition(",")[0]


def host_end(step: Shaping, kernel: HostAndSandbox) -> Link:
    """The host end of the sandbox's veth. Raises CNIError."""
    inner = kernel.netns(SANDBOX).link(step.link)
    if inner.kind != "veth" or not inner.link:
        raise CNIError(
            INVALID_CONFIG,
            f"container interface {step.link} has no veth peer: "
            f"it is {inner.kind or 'a hardware interface'}",
            "traffic is limited on the host end of a veth: chain bandwidth to bridge or ptp",
        )
    outer = ownership.peer_on_host(kernel, inner)
    if outer is None:
        raise CNIError(
            INVALID_CONFIG,
            f"veth peer with index {inner.link} is not in host ns",
            f"the other end of {step.link} must be in the namespace the plugin runs in",
        )
    if outer.name not in step.host_links:
        raise CNIError(
            INVALID_CONFIG,
            "no veth peer of container interface found in host ns",
            f"the peer of {step.link} is {outer.name}; prevResult must list it among its "
            "interfaces, without a sandbox",
        )
    return outer


# --- limits --------------------------------------------------------------------------------------


def set_limit(step: Shaping, host: Netns, link: Link, limit: Limit, *, towards: bool) -> None:
    """Put a limit on what a link sends; towards: whether that is what the container receives."""
    bucket = tc.token_bucket(limit.rate, limit.burst)
    networks = step.shaped or step.unshaped
    if not networks:
        host.request(tc.add_token_bucket(link.index, bucket))
        return
    listed, others = (LIMITED, DIRECT) if step.shaped else (DIRECT, LIMITED)
    host.request(tc.add_htb(link.index, others))
    try:
        host.request(
            *tc.add_htb_class(link.index, LIMITED, bucket),
            *(
                tc.assign(
                    link.index,
                    network,
                    listed,
                    FIRST_PRIORITY + (0 if network.is_ipv4 else 1),
                    by_source=towards,
                )
                for network in networks
            ),
        )
    except BaseException:
        _lift(host, link)
        raise


def _lift(host: Netns, link: Link) -> None:
    found = tc.qdisc(host.netlink, link.index)
    if found is not None:
        host.request(tc.delete_qdisc(found))


def is_limit(found: tc.Qdisc) -> bool:
    """Whether a discipline is one that `set_limit` sets, or the reference."""
    return found.kind in ("tbf", "htb") and found.handle == 1 << 16


def limit_differences(step: Shaping, host: Netns, link: Link, limit: Limit) -> list[str]:
    """How what limits a link differs from what is wanted."""
    wanted = tc.token_bucket(limit.rate, limit.burst)
    found = tc.qdisc(host.netlink, link.index)
    classful = bool(step.shaped or step.unshaped)
    if found is None or found.kind != ("htb" if classful else "tbf"):
        return [f"Failed to find qdisc: nothing limits what {link.name} sends"]
    bucket = found.bucket
    if classful:
        bucket = tc.class_bucket(host.netlink, link.index, 1 << 16 | LIMITED)
    if bucket is None:
        return [f"Failed to find qdisc: nothing limits what {link.name} sends"]
    figures = [("Rate", wanted.rate, bucket.rate)]
    if not classful:
        figures.append(("Limit", wanted.limit, bucket.limit))
    if not wanted.burst:
        figures.append(("Buffer", wanted.buffer, bucket.buffer))
    differences = [
        f"{what} doesn't match: that of {link.name} is {actual}, expected {expected}"
        for what, expected, actual in figures
        if expected != actual
    ]
    networks = len(step.shaped or step.unshaped)
    if classful:
        assigning = [item for item in tc.filters(host.netlink, link.index, 1 << 16) if item.classid]
        if len(assigning) != networks:
            differences.append(
                f"{link.name} has filters for {len(assigning)} networks, expected {networks}"
            )
    return differences


# --- redirection ---------------------------------------------------------------------------------


def make_ifb(step: Shaping, host: Netns, outer: Link) -> Link:
    """The ifb for what the container sends, up and marked as the attachment's."""
    ifb = _create_ifb(step, host, outer)
    try:
        host.disable_ipv6(ifb.name)
        host.request(links.update(ifb, up=True, alias=step.owner.comment))
    except BaseException:
        host.discard(ifb)
        raise
    return ifb


def _create_ifb(step: Shaping, host: Netns, outer: Link) -> Link:
    first, second = _names(step.owner)
    try:
        return links.create(host.netlink, link_kinds.ifb(first, mtu=outer.mtu, txqlen=0))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
    taken = host.find(first, altnames=True)
    ours = taken is None or (taken.name == first and _tag(taken) == step.owner.tag)
    if taken is not None and ours:
        if _is_redirected(host, outer, taken):
            raise CNIError(
                ALREADY_EXISTS,
                f"what {outer.name} receives is limited already, by {first}",
                "DEL comes before another ADD",
            )
        host.discard(taken)  # of an attachment that was cut short
    elif not ours:
        left = host.find(second)  # which no other link has as its name
        if left is not None and left.kind == "ifb" and _tag(left) in ("", step.owner.tag):
            host.discard(left)
    name = first if ours else second
    return links.create(host.netlink, link_kinds.ifb(name, mtu=outer.mtu, txqlen=0))


def _is_redirected(host: Netns, outer: Link, ifb: Link) -> bool:
    """Whether what a link receives goes to an ifb."""
    parent = ingress_parent(host, outer)
    found = tc.filters(host.netlink, outer.index, parent) if parent is not None else []
    return any(item.redirect == ifb.index for item in found)


def redirect_to(host: Netns, outer: Link, ifb: Link, undo: list[Undo]) -> None:
    """Send all that a link receives to the ifb.

    An ingress or clsact qdisc that is there already is used, unless it has filters: those would
    not see the packets any more, or we would not.
    """
    parent = tc.INGRESS_HANDLE
    try:
        host.request(tc.add_ingress(outer.index))
        undo.append(lambda: _remove_ingress(host, outer))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        parent = _unused_ingress(host, outer)
    host.request(tc.redirect(outer.index, parent, ifb.index))
    undo.append(lambda: host.request(tc.delete_redirection(outer.index, parent)))


def _unused_ingress(host: Netns, outer: Link) -> int:
    """The handle of the ingress or clsact qdisc that a link has. Raises CNIError if it is used."""
    parent = ingress_parent(host, outer)
    if parent is None:
        raise NetlinkError(errno.ENOENT, "no ingress qdisc", f"redirect link {outer.name}")
    others = tc.filters(host.netlink, outer.index, parent)
    if others:
        raise CNIError(
            ALREADY_EXISTS,
            f"something else filters what {outer.name} receives ({others[0].kind})",
            "an egress limit needs all of it; drop the limit, or have the other program leave the "
            "interface alone",
        )
    return parent


def _stop_redirection(host: Netns, outer: Link, ifb: Link) -> None:
    """Take back `redirect_to`. A qdisc that others may have filters in stays."""
    parent = ingress_parent(host, outer)
    if parent is None:
        return
    if any(item.redirect == ifb.index for item in tc.filters(host.netlink, outer.index, parent)):
        host.request(tc.delete_redirection(outer.index, parent))
        if parent == tc.INGRESS_HANDLE and not tc.filters(host.netlink, outer.index, parent):
            _remove_ingress(host, outer)


def _remove_ingress(host: Netns, outer: Link) -> None:
    found = tc.qdisc(host.netlink, outer.index, tc.INGRESS)
    if found is not None:
        host.request(tc.delete_qdisc(found))


def ingress_parent(host: Netns, outer: Link) -> int | None:
    """The handle that filters of what a link receives hang on, None if there is none."""
    found = tc.qdisc(host.netlink, outer.index, tc.INGRESS)
    if found is None:
        return None
    return tc.CLSACT_INGRESS if found.kind == "clsact" else tc.INGRESS_HANDLE
