"""Mistakes for the product to make, by which it is seen that the driver finds such.

Each is a change to pycni in this process, and says which operations bring it out. What is patched
are the product's own functions, so a mistake moves with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from socket import AF_INET
from typing import Any
from unittest import mock

from pycni.kernel import address
from pycni.kernel import link as links
from pycni.kernel.netfilter import conntrack, subnet_sets
from pycni.kernel.netfilter.nfnetlink import IP_FAMILIES
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.plugins.host_local import HostLocal
from pycni.plugins.shared import tuning_backup
from pycni.runtime import chain
from pycni.sdk import collection, planned
from pycni.sdk.ipam import delegate_ipam
from pycni.spec import owner
from pycni.spec.ip import IPNetwork
from pycni.state import leases
from pycni.state.cache import ResultCache
from pycni.steps import (
    address_flows,
    bridge,
    executor,
    gateway_address,
    masquerade,
    ownership,
    shaping,
    veth,
)
from pycni.steps.backend import Leftovers
from pycni.steps.masquerade import flows as masquerade_flows
from pycni.steps.masquerade import iptables as masquerade_iptables
from pycni.steps.port_map import flows as port_map_flows
from pycni.steps.port_map import iptables as port_map_iptables
from pycni.steps.port_map import nftables as port_map_nftables

Patches = tuple[tuple[Any, str, Any], ...]


@dataclass(frozen=True)
class Mistake:
    """patches: what to put in place of what, by owner and name; operations: the kinds that show it,
    besides ADD and DEL; settings: of the network, that it takes; without: what hides it; beside:
    what may be chosen, of that which most do without."""

    name: str
    patches: Callable[[], Patches]
    operations: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    without: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @contextmanager
    def made(self) -> Iterator[None]:
        """The product makes the mistake during the block."""
        with ExitStack() as stack:
            for target, name, value in self.patches():
                stack.enter_context(mock.patch.object(target, name, value))
            yield


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _none_of_them(*_: Any, **__: Any) -> list[Any]:
    return []


def _no_leftovers(*_: Any) -> Leftovers:
    return Leftovers()


def _lease_first() -> Patches:
    """The lease goes before the rules."""
    delete = planned.PlannedPlugin.delete

    def early(self: Any, request: Any) -> None:
        delegate_ipam(request, "DEL")
        delete(self, request)

    return ((planned.PlannedPlugin, "delete", early),)


def _failures_forgotten() -> Patches:
    """That a rule could not be removed is no reason to keep the lease, nor to say so."""
    remove = executor.remove

    def careless(plan: Any, kernel: Any) -> list[Any]:
        remove(plan, kernel)
        return []

    return ((executor, "remove", careless),)


def _sweep_by_network() -> Patches:
    """What is removed as one attachment's is all that is of its network."""

    def includes(self: Any, comment: str) -> bool:
        return comment.startswith(owner.network_tag(self.network))

    init = owner.Owners.__init__

    def wide(self: Any, network: str, *rest: Any, **more: Any) -> None:
        init(self, network, *rest, **more)
        self.tag = owner.network_tag(network)

    return ((owner.Owners, "includes", includes), (owner.Owners, "__init__", wide))


def _forgotten_backend() -> Patches:
    return ((masquerade_iptables, "leftovers", _no_leftovers),)


def _forgotten_family() -> Patches:
    return ((port_map_iptables, "IP_FAMILIES", IP_FAMILIES[1:]),)


def _identity_not_compared() -> Patches:
    """An element goes by its key, no matter who has it."""

    def deletions(self: Any, members: Any) -> list[Any]:
        places = [(subnet_sets.set_name(self._feature, one.subnet), one.key) for one in members]
        return [
            subnet_sets._delete(*place)
            for place in places
            if subnet_sets._element(self._netfilter, *place) is not None
        ]

    return ((subnet_sets.Membership, "_deletions", deletions),)


def _undo_of_others() -> Patches:
    """A failed ADD takes the bridge with it, no matter who made that."""
    apply = bridge.apply

    def careless(step: Any, kernel: Any) -> Callable[[], None]:
        apply(step, kernel)
        return lambda: kernel.host.discard(step.name)

    return ((bridge, "apply", careless),)


def _keep_list_ignored() -> Patches:
    collect = collection.collect

    def forgetful(plugin: Any, request: Any, _keep: Any) -> None:
        collect(plugin, request, frozenset())

    return ((collection, "collect", forgetful),)


def _conntrack_kept() -> Patches:
    return tuple(
        (module, "end", _nothing) for module in (port_map_flows, masquerade_flows, address_flows)
    )


def _conntrack_flushed() -> Patches:
    """With one flow all are forgotten."""

    def forget(netfilter: Any, *_: Any) -> None:
        body = conntrack._GENERAL.pack(AF_INET, conntrack._VERSION, 0)
        netfilter.request(NetlinkRequest(conntrack._DELETE, 0, body, "forget all"))

    return ((conntrack, "forget", forget),)


def _masquerade_left() -> Patches:
    return ((masquerade, "remove", _nothing),)


def _port_left() -> Patches:
    return ((port_map_nftables, "leftovers", _no_leftovers),)


def _port_taken_over() -> Patches:
    return ((port_map_nftables, "_gives_way", lambda *_: True),)


def _gateway_removed() -> Patches:
    """DEL takes the gateway's address along."""
    remove = veth.remove

    def thorough(step: Any, kernel: Any) -> None:
        remove(step, kernel)
        found = kernel.host.find(step.port.bridge)
        for one in address.dump(kernel.host.netlink, found.index) if found else ():
            if one.network.is_ipv4:
                gone = IPNetwork(one.network.address, one.network.prefix)
                kernel.host.request(address.delete(found.index, gone))

    return ((veth, "remove", thorough),)


def _ifb_left() -> Patches:
    return ((shaping, "remove", _nothing),)


def _backup_swapped() -> Patches:
    """Containers share a backup."""
    return ((tuning_backup, "file_name", lambda *_: "eth0.json"),)


def _stale_entry() -> Patches:
    """What is detached stays noted."""
    return ((ResultCache, "delete", _nothing),)


def _no_lock() -> Patches:
    class Open:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Open:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

    return ((leases, "Lock", Open), (leases.LeaseStore, "reserve", _slow_reserve()))


def _slow_reserve() -> Callable[..., bool]:
    """Reserving as without a lock: look, then write."""
    reserve = leases.LeaseStore.reserve

    def careless(self: Any, address: Any, *rest: Any) -> bool:
        import os
        import time

        time.sleep(0.002)
        path = os.path.join(self.path, str(address))
        if os.path.exists(path):
            os.unlink(path)
        found: bool = reserve(self, address, *rest)
        return found

    return careless


def _index_of_elsewhere() -> Patches:
    """An index of the container's is taken for one of the host's."""
    remove = veth.remove

    def mistaken(step: Any, kernel: Any) -> None:
        inner = kernel.sandbox.find(step.name) if kernel.sandbox is not None else None
        outer = kernel.host.find(inner.index) if inner is not None else None
        if outer is not None and outer.kind == "veth":
            kernel.host.discard(outer)
        remove(step, kernel)

    return ((veth, "remove", mistaken),)


def _path_believed() -> Patches:
    """The namespace at an attachment's path is its own, and what has its interface's name there."""
    return (
        (ownership, "is_own_namespace", lambda *_: True),
        (ownership, "_is_own", lambda *_: True),
    )


def _port_isolated() -> Patches:
    """Bridge ports are isolated, asked for or not."""
    update = links.update

    def isolating(link: Any, **changes: Any) -> Any:
        if "isolated" in changes:
            changes["isolated"] = True
        return update(link, **changes)

    return ((links, "update", isolating),)


def _lease_kept() -> Patches:
    return ((HostLocal, "delete", _nothing),)


def _undo_skipped() -> Patches:
    return ((chain.Chain, "_undo", _none_of_them),)


def _gateway_not_checked() -> Patches:
    """The first gateway address will do for everybody."""
    return ((gateway_address, "apply", _nothing),)


_IPTABLES = (("masquerade", "iptables"), ("portmap", "iptables"))
MISTAKES = (
    Mistake("a lease is released before the rules are gone", _lease_first, ("Kill",)),
    Mistake("a lease is released in spite of a failed removal", _failures_forgotten, ("Refuse",)),
    Mistake("a whole network is swept for one attachment", _sweep_by_network),
    Mistake("a backend is forgotten at removal", _forgotten_backend, settings=_IPTABLES),
    Mistake("a family is forgotten at removal", _forgotten_family, settings=_IPTABLES),
    Mistake(
        "identity is not compared on DEL",
        _identity_not_compared,
        ("Lose",),
        without=("Lose nftables", "Lose cache", "Lose run"),
    ),
    Mistake("undo deletes what was there before", _undo_of_others, ("Refuse",)),
    Mistake("GC ignores its keep list", _keep_list_ignored, ("GC",)),
    Mistake("conntrack entries are kept", _conntrack_kept),
    Mistake("conntrack entries of others are forgotten", _conntrack_flushed),
    Mistake("an element of masquerade is left", _masquerade_left),
    Mistake("an element of a port map is left", _port_left),
    Mistake("a port is taken over", _port_taken_over),
    Mistake("a gateway's address is removed while it is used", _gateway_removed),
    Mistake("an ifb is left", _ifb_left, settings=(("bandwidth", True),)),
    Mistake("tuning's backups are swapped", _backup_swapped, settings=(("tuning", True),)),
    Mistake("a detached container stays noted", _stale_entry),
    Mistake("a lock is not taken", _no_lock, ("Together",)),
    Mistake("an index is believed without its namespace", _index_of_elsewhere),
    Mistake(
        "a namespace is believed by its path",
        _path_believed,
        ("Vanish", "Appear"),
        settings=(("tuning", True),),
        beside=("reuse", "other ids"),
    ),
    Mistake("a bridge port is isolated", _port_isolated),
    Mistake("a lease is kept", _lease_kept),
    Mistake("a failed ADD is not undone", _undo_skipped),
    Mistake("a bridge gets no gateway address", _gateway_not_checked),
)
