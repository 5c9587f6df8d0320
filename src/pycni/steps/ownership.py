"""Whose is it: which links are the attachment's own, decided in this one place for every verb.

A name inside a container says nothing: the container can rename its interface and make another,
and the path of its namespace may lead to the next container by now. What decides, in this order:

1. the identity noted at ADD: the namespace by the kernel's numbers, links by index;
2. the alias of a host link, which carries its owner's tag, if the note was lost;
3. prevResult, for what the reference made: the host link or the MAC address that it lists;
4. the name, where the runtime gives nothing else (before 0.4.0 DEL has no prevResult), and
   nothing says that the interface is another attachment's.

Used by the steps, by the executor, and by `pycni.sdk`.
"""

from __future__ import annotations

import time

from pycni.kernel import link, namespace
from pycni.plan.steps import HOST, SANDBOX, Address
from pycni.spec.errors import CNIError
from pycni.spec.identity import FOUND, Identity, NetnsID, OwnLink, Part, now
from pycni.spec.ip import parse_address
from pycni.spec.owner import Owner, is_whole, names_in, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Protocol

    from pycni.kernel.link import Link
    from pycni.plan.plan import Plan
    from pycni.plan.steps import Step
    from pycni.spec.identity import OwnDevice
    from pycni.spec.ip import IPAddress
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox, Netns

    class ModeNote(Protocol):
        """The mode that is noted of a link's ipvlans: `pycni.state.masters.MasterNote`."""

        mode: str

        def write(self, mode: str) -> None: ...

    class Notes(Protocol):
        """Where identities are kept: `pycni.state.attachments.AttachmentLock`."""

        owner: Owner
        identity: Identity | None
        is_known: bool
        is_unfinished: bool
        problem: CNIError | None

        def write(self, identity: Identity) -> None: ...

        def remove(self) -> None: ...

        def revert(self) -> None: ...

        def keep(self) -> None: ...

        def start_over(self) -> None: ...

        def lock_sandbox(self, device: int, inode: int) -> AbstractContextManager[object]: ...

        def lock_master(self, netns: NetnsID, index: int) -> AbstractContextManager[ModeNote]: ...

        def close(self) -> None: ...


_TO_VANISH = 0.25  # seconds that links of a namespace that has gone may take to go
_PAUSE = 0.005


def _nothing() -> None:
    return None


def no_others() -> Iterator[Identity]:
    return iter(())


class Claim:
    """What one request says of its attachment, and where more is noted.

    plugin: its type; previous: gives prevResult, None for none; by_name: whether a name
    alone may decide; others: gives the identities of all attachments of the node, for the rare case
    that nothing else decides. left: the kinds of what DEL leaves to that of the interface's plugin.
    """

    def __init__(
        self,
        notes: Notes,
        plugin: str = "",
        previous: Callable[[], Result | None] = _nothing,
        by_name: bool = False,
        others: Callable[[], Iterator[Identity]] = no_others,
    ) -> None:
        self.notes = notes
        self.plugin = plugin
        self.previous = previous
        self.by_name = by_name
        self.others = others
        self.left: tuple[str, ...] = ()

    @property
    def owner(self) -> Owner:
        return self.notes.owner

    @property
    def identity(self) -> Identity | None:
        return self.notes.identity


# --- namespaces ----------------------------------------------------------------------------------


def netns_id(site: Netns) -> NetnsID:
    """What the kernel distinguishes a namespace by."""
    space = site.namespace
    return NetnsID(space.device, space.inode, site.netlink.netns_cookie)


def is_own_namespace(identity: Identity | None, site: Netns) -> bool:
    """Whether a namespace may be the attachment's own: it is, unless another one is noted."""
    noted = None if identity is None else identity.netns
    if noted is None:
        return True
    space = site.namespace
    if (noted.device, noted.inode) != (space.device, space.inode):
        return False
    return not noted.cookie or noted.is_same(netns_id(site))


def is_of_host(kernel: HostAndSandbox, identity: Identity) -> bool:
    """Whether the attachment was made on this host; elsewhere its indexes mean nothing."""
    return identity.host is None or identity.host.is_same(netns_id(kernel.host))


def is_in_place(kernel: HostAndSandbox, identity: Identity) -> bool:
    """Whether an attachment's interface is there, in its namespace, at the path that was noted."""
    if not is_of_host(kernel, identity) or identity.netns is None or not identity.path:
        return False
    try:
        space = namespace.open_path(identity.path)
    except OSError:
        return False
    with space, space.netlink() as netlink:
        here = NetnsID(space.device, space.inode, netlink.netns_cookie)
        if not here.is_same(identity.netns):
            return False
        inside = [own.index for own in identity.links if own.where != HOST]
        return not inside or any(found.index in inside for found in link.dump(netlink))


def is_alive(kernel: HostAndSandbox, identity: Identity) -> bool:
    """Whether an attachment is there: its interface, or at least its host end.

    The kernel takes a while to take a namespace apart; a host end that stays leads to one that is
    in use under another path.
    """
    if is_in_place(kernel, identity):
        return True
    if not is_of_host(kernel, identity):
        return False
    deadline = time.monotonic() + _TO_VANISH
    while any(_is_on_host(kernel, own, identity) for own in identity.links):
        if time.monotonic() >= deadline:
            return True
        time.sleep(_PAUSE)
    return False


def _is_on_host(kernel: HostAndSandbox, own: OwnLink, identity: Identity) -> bool:
    found = kernel.host.find(own.index) if own.where == HOST else None
    return (
        found is not None
        and found.name == own.name
        and tag_of(found.alias) in ("", identity.owner.tag)
    )


# --- links ---------------------------------------------------------------------------------------


def own_link(kernel: HostAndSandbox, name: str) -> Link | None:
    """The attachment's interface in the sandbox that was called `name` at ADD, if it is there."""
    sandbox, claim = kernel.sandbox, kernel.claim
    if sandbox is None:
        return None
    from pycni.steps import noted_links  # ADD does without

    identity = kernel.identity
    noted = None
    if identity is not None:
        noted = identity.link(SANDBOX, name) or identity.link(FOUND, name)
    if identity is not None and noted is not None:
        known = noted_links.find(kernel, identity, noted)
        if known is not None:
            return known
    # Nothing is noted, or the reference's plugins have taken its place: DEL and ADD by them.
    found = sandbox.find(name)
    if found is None or (noted is not None and not noted_links.leads_to_host(kernel, found)):
        return None
    return found if claim is None or _is_own(found, kernel, claim) else None


def own_host_end(kernel: HostAndSandbox, name: str) -> Link | None:
    """The host end of the attachment's pair, by the name that its plan has for it."""
    host, claim = kernel.host, kernel.claim
    identity = kernel.identity
    noted = None if identity is None else identity.link(HOST, name)
    found = host.find(name if noted is None else noted.index)
    if found is None or found.kind != "veth":
        return None
    if claim is None:
        return found
    tag = tag_of(found.alias)
    if tag:
        return found if tag == claim.owner.tag else None
    if noted is not None:
        return found if found.name == name else None
    # Made by the reference, or by an ADD of ours that was cut short.
    listed = _listed_mac(claim, name, sandbox=False)
    if listed is None:
        return found
    # With both ends on the host it is no container's, whatever lists it.
    return found if found.link_netnsid is not None and listed in ("", found.mac) else None


def peer_on_host(kernel: HostAndSandbox, inner: Link | None) -> Link | None:
    """The other end of a sandbox's veth, if that is on the host.

    An index counts in its namespace only, and a container chooses those in its own: the host's end
    has to lead back to this very namespace.
    """
    if inner is None or inner.kind != "veth" or not inner.link or kernel.sandbox is None:
        return None
    outer = kernel.host.find(inner.link)
    if outer is None or outer.kind != "veth" or outer.link != inner.index:
        return None
    from pycni.steps import noted_links

    return outer if noted_links.leads_to_sandbox(kernel, outer) else None


def is_listed(kernel: HostAndSandbox, outer: Link | None) -> bool:
    """Whether prevResult lists a link of the host whose alias names no owner."""
    if outer is None or tag_of(outer.alias) or kernel.claim is None:
        return False
    listed = _listed_mac(kernel.claim, outer.name, sandbox=False)
    return listed is not None and listed in ("", outer.mac)


def _is_own(found: Link, kernel: HostAndSandbox, claim: Claim) -> bool:
    """Whether an interface of which nothing is noted under this owner is its own all the same."""
    outer = peer_on_host(kernel, found)
    tag = "" if outer is None else tag_of(outer.alias)
    if tag:
        return tag == claim.owner.tag
    if _is_anothers(found, kernel, claim):
        return False
    if claim.notes.is_unfinished:
        return True
    listed = _listed_mac(claim, found.name, sandbox=True)
    if listed is None:
        return claim.by_name
    if outer is not None and _listed_mac(claim, outer.name, sandbox=False) is not None:
        return True
    return listed in ("", found.mac)


def _is_anothers(found: Link, kernel: HostAndSandbox, claim: Claim) -> bool:
    """Whether the interface is noted as another attachment's."""
    sandbox = kernel.netns(SANDBOX)
    here = None
    for other in claim.others():
        if other.owner == claim.owner or other.netns is None:
            continue
        if all((own.where, own.index) != (SANDBOX, found.index) for own in other.links):
            continue
        here = here or netns_id(sandbox)
        if here.is_same(other.netns):
            return True
    return False


def _listed_mac(claim: Claim, name: str, *, sandbox: bool) -> str | None:
    """The MAC address that prevResult lists for an interface; None if it does not list that."""
    previous = claim.previous()
    for interface in () if previous is None else previous.interfaces:
        if interface.name == name and bool(interface.sandbox) == sandbox:
            return interface.mac
    return None


def is_same_container(kernel: HostAndSandbox, comment: str, owner: Owner) -> bool:
    """Whether an object of nftables, by its comment, is of an attachment of the owner's container.

    Where names are so long that the comment was cut, those of the attachments that are noted count.
    """
    network, ifname, _ = names_in(comment)
    tag = tag_of(comment)
    if tag == Owner(network, owner.container_id, ifname).tag:
        return True
    if is_whole(comment) or kernel.claim is None:
        return False
    return any(
        other.owner.tag == tag and other.owner.container_id == owner.container_id
        for other in kernel.claim.others()
    )


# --- what is noted -------------------------------------------------------------------------------


def noted_addresses(kernel: HostAndSandbox) -> tuple[IPAddress, ...]:
    """The addresses that are noted of the attachment, whether or not there is a prevResult."""
    identity = kernel.identity
    return () if identity is None else tuple(map(parse_address, identity.addresses))


def problems(kernel: HostAndSandbox) -> list[CNIError]:
    """What keeps a DEL from knowing what is noted; it removes what it can, and fails."""
    problem = None if kernel.claim is None else kernel.claim.notes.problem
    return [] if problem is None else [problem]


def note(
    kernel: HostAndSandbox, plan: Plan, kinds: tuple[str, ...] = (), files: tuple[str, ...] = ()
) -> None:
    """Note what an ADD has made.

    kinds: of its steps, those that can outlive the interface; files: that are kept for DEL.

    Raises CNIError if it cannot be noted.
    """
    claim, sandbox = kernel.claim, kernel.sandbox
    if claim is None or sandbox is None:
        return
    known = claim.identity
    made = [own for step in plan.steps if step.makes_link for own in _links(step, kernel)]
    addresses = [
        str(step.address.address)
        for step in plan.steps
        if isinstance(step, Address) and step.where == SANDBOX
    ]
    if known is None or known.netns is None or known.owner != claim.owner:
        links = made or _chained_link(claim, sandbox)
        part = Part(claim.plugin, kinds, files)
        here, inside = netns_id(kernel.host), netns_id(sandbox)
        claim.notes.write(
            Identity(
                claim.owner,
                sandbox.path,
                inside,
                here,
                now(),
                tuple(links),
                tuple(addresses),
                (part,),
            )
        )
        return
    if not made and not known.links:
        made = _chained_link(claim, sandbox)
    changed = known.replace(
        path=sandbox.path or known.path,
        links=tuple({(own.where, own.name): own for own in (*known.links, *made)}.values()),
        addresses=tuple(dict.fromkeys((*known.addresses, *addresses))),
        detaching=False,
    ).with_part(claim.plugin, kinds, files)
    if changed != known:
        claim.notes.write(changed)


def note_device(kernel: HostAndSandbox, device: OwnDevice) -> None:
    """Note a device of the host, before it is the container's. Raises CNIError."""
    claim, sandbox = kernel.claim, kernel.sandbox
    if claim is None or sandbox is None:
        return
    known = claim.identity
    if known is None or known.netns is None or known.owner != claim.owner:
        here, inside = netns_id(kernel.host), netns_id(sandbox)
        known = Identity(claim.owner, sandbox.path, inside, here, time.time())
    others = (one for one in known.devices if one.inside != device.inside)
    claim.notes.write(known.replace(devices=(*others, device)))


def noted_device(kernel: HostAndSandbox, inside: str) -> OwnDevice | None:
    """What is noted of the device that was put into the sandbox under a name."""
    identity = kernel.identity
    return None if identity is None else identity.device(inside)


def forget(kernel: HostAndSandbox, *, with_interface: bool = False) -> None:
    """Note that a plugin has removed its part; the last one's takes all. Raises CNIError.

    with_interface: and what other plugins have left with the interface.
    """
    claim = kernel.claim
    known = kernel.identity
    if claim is None or known is None:
        if claim is not None and claim.notes.is_known:
            claim.notes.remove()
        return
    left = known.without_parts(
        lambda part: part.plugin == claim.plugin or (with_interface and not part.awaits_delete)
    )
    if left is None:
        claim.notes.remove()
    else:
        claim.notes.write(left.with_part(claim.plugin, claim.left) if claim.left else left)


def keep_part(kernel: HostAndSandbox) -> None:
    """Note that a plugin keeps what it has for another DEL, and no other one removes it."""
    claim = kernel.claim
    identity = kernel.identity
    if claim is not None and identity is not None:
        kept = identity.with_part(claim.plugin, awaits_delete=True)
        claim.notes.write(kept.replace(detaching=True))


def note_failed_delete(kernel: HostAndSandbox) -> None:
    """Note that a DEL has begun, which is still to be completed. Raises CNIError."""
    identity = kernel.identity
    if kernel.claim is not None and identity is not None and not identity.detaching:
        kernel.claim.notes.write(identity.replace(detaching=True))


def note_for_delete(kernel: HostAndSandbox, plan: Plan, kinds: tuple[str, ...]) -> None:
    """Note what of a failed ADD's plan may be left, for the DEL that comes."""
    if kernel.claim is None:
        return
    try:
        note(kernel, plan.replace(steps=tuple(s for s in plan.steps if not s.makes_link)), kinds)
        note_failed_delete(kernel)
    except (OSError, CNIError):
        pass  # the failure that led here is the one to report
    kernel.claim.notes.keep()


def _links(step: Step, kernel: HostAndSandbox) -> Iterator[OwnLink]:
    """The links that a step has made."""
    name: str = getattr(step, "name", "")
    if step.kind == "veth":
        host_name: str = getattr(step, "host_name", "")
        outer = kernel.host.known(host_name)
        yield OwnLink(HOST, host_name, outer.index)
        yield OwnLink(SANDBOX, name, outer.link)
        return
    inner = kernel.netns(SANDBOX).known(name)
    if step.kind not in ("child_link", "tap"):
        yield OwnLink(SANDBOX, name, inner.index)
        return
    parent, inode = 0 if inner.link_netnsid is None else inner.link, kernel.inodes.get(name, 0)
    yield OwnLink(SANDBOX, name, inner.index, inner.kind, parent, inner.mac, inode)


def _chained_link(claim: Claim, sandbox: Netns) -> list[OwnLink]:
    """The interface that a plugin of others made, as a chained one of ours finds it.

    The first plugin of a list, such as loopback, finds what is another attachment's.
    """
    name = claim.owner.ifname
    found = None if claim.previous() is None else sandbox.find(name)
    if found is None:
        return []
    return [OwnLink(FOUND, name, found.index)]
