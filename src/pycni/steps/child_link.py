"""An interface on top of another (`plan.steps.ChildLink`): macvlan, ipvlan, vlan; and dummy.

Nothing of it is outside the sandbox, and it goes when the sandbox goes.
"""

from __future__ import annotations

from pycni.kernel import link as links
from pycni.kernel import link_kinds
from pycni.kernel import route as routes
from pycni.kernel.netlink.errors import NetlinkError
from pycni.plan.steps import SANDBOX
from pycni.spec.errors import ALREADY_EXISTS, INVALID_CONFIG, CNIError
from pycni.spec.owner import hashed_name
from pycni.steps import ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link, NewLink
    from pycni.plan.steps import ChildLink
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns


def apply(step: ChildLink, kernel: HostAndSandbox) -> Undo:
    sandbox = kernel.netns(SANDBOX)
    require_free(step.name, sandbox)
    made = sandbox.remember(_create(step, kernel, sandbox))
    if made.link_netnsid is None:
        return lambda: sandbox.discard(made)
    from pycni.kernel import sysfs  # DEL does without

    inode = sysfs.link_inode(made, sandbox.namespace, kernel.host.namespace)
    kernel.inodes[step.name] = inode

    def take_back() -> None:
        from pycni.steps import noted_links

        noted_links.discard(kernel, made, inode)

    return take_back


def check(step: ChildLink, kernel: HostAndSandbox) -> list[str]:
    found = kernel.netns(SANDBOX).find(step.name)
    if found is None:
        return []  # reported where the interfaces of the result are checked
    if found.kind != step.type:
        return [f"interface {step.name} is not of type {step.type}"]
    differences = []
    if step.master:
        master = kernel.netns(step.master_in).find(step.master, altnames=True)
        if master is None:
            differences.append(f"master {step.master} of interface {step.name} is missing")
        elif found.link != master.index or not _is_in(step.master_in, found, kernel):
            differences.append(f"interface {step.name} is not on top of {step.master}")
    mode = found.macvlan_mode or found.ipvlan_mode
    if step.mode and mode != step.mode:
        differences.append(f"{step.type} {step.name} is in mode {mode}, not {step.mode}")
    if step.type == "vlan" and found.vlan_id != step.vlan_id:
        differences.append(f"vlan {step.name} has the id {found.vlan_id}, not {step.vlan_id}")
    # Of the others tuning may have changed it since; the reference checks it here only, too.
    if step.type == "vlan" and step.mtu and found.mtu != step.mtu:
        differences.append(f"interface {step.name} has the MTU {found.mtu}, not {step.mtu}")
    return differences


def _is_in(where: str, found: Link, kernel: HostAndSandbox) -> bool:
    """Whether what a sandbox's interface is on is in the sandbox, or on the host."""
    if where == SANDBOX:
        return found.link_netnsid is None
    from pycni.steps.noted_links import leads_to_host

    return leads_to_host(kernel, found)


def repair(step: ChildLink, kernel: HostAndSandbox) -> None:
    from pycni.plan.difference import unrepairable

    sandbox = kernel.netns(SANDBOX)
    if sandbox.find(step.name) is not None:
        raise unrepairable(step)
    require_free(step.name, sandbox)
    remove(step, kernel)  # what its container renamed or hid
    apply(step, kernel)


def remove(step: ChildLink, kernel: HostAndSandbox) -> None:
    sandbox, claim = kernel.sandbox, kernel.claim
    if sandbox is None:
        return
    for name in (step.name, _temporary(step)):
        found = ownership.own_link(kernel, name)
        if found is not None and found.kind == step.type:
            sandbox.discard(found)
            return
    identity = kernel.identity
    noted = None if identity is None else identity.link(SANDBOX, step.name)
    if claim is not None and identity is not None and noted is not None:
        from pycni.steps import noted_links

        noted_links.remove_hidden(kernel, identity, noted, claim.others)


def require_free(name: str, site: Netns, what: str = "") -> None:
    """Raise a CNIError if an interface of the site has this name, be it as an alternative.

    what: the name with what it is for.
    """
    holder = site.find(name, altnames=True)
    if holder is None:
        return
    what = what or f'container interface name ("{name}")'
    where = f"in the sandbox {site.path}" if site.path else "on the host"
    if holder.name != name:
        raise CNIError(
            ALREADY_EXISTS,
            f"{what} already exists: {name} is an alternative name of {holder.name} {where}",
            links.drop_altname(holder, name),
        )
    hint = f"there is an interface {name} {where}; delete the earlier attachment first"
    if name == "lo":
        hint = "lo is the loopback of every namespace: name the interface otherwise, such as eth0"
    raise CNIError(ALREADY_EXISTS, f"{what} already exists", hint)


def find_master(site: Netns, name: str) -> Link:
    """The interface to put another on, by default the one that the default route leaves by.

    Raises CNIError.
    """
    if not name:
        index = routes.default_device(site.netlink)
        if not index:
            raise CNIError(
                INVALID_CONFIG,
                "no default route interface found",
                'without "master" the interface of the default route is taken, and there is none',
            )
        return site.link(index)
    found = site.find(name, altnames=True)
    if found is None:
        where = f"in the sandbox {site.path}" if site.path else "on the host"
        raise CNIError(
            INVALID_CONFIG,
            f'failed to lookup master "{name}": Link not found',
            f'there is no interface {name} {where}; see "master" and "linkInContainer"',
        )
    return found


def _create(step: ChildLink, kernel: HostAndSandbox, sandbox: Netns) -> Link:
    if step.type == "dummy":
        dummy = link_kinds.dummy(step.name, mac=step.mac or None, mtu=step.mtu)
        return links.create(sandbox.netlink, dummy)
    home = kernel.netns(step.master_in)
    master = find_master(home, step.master)
    if not 0 <= step.mtu <= master.mtu:
        raise CNIError(
            INVALID_CONFIG,
            f"invalid MTU {step.mtu}, must be [0, master MTU({master.mtu})]",
            f"what {master.name} cannot carry, an interface on it cannot; 0 stands for its MTU",
        )
    if step.type == "vlan" and not master.is_up:
        raise CNIError(
            INVALID_CONFIG,
            f'master "{master.name}" is down',
            "a vlan cannot be set up while the interface below it is down; set that up first",
        )

    def make() -> Link:
        if home is sandbox:
            return links.create(sandbox.netlink, _request(step, step.name, master))
        # Kernels before 6.15 refuse a name that the host has too, although it is for the sandbox.
        request = _request(step, _temporary(step), master, sandbox.namespace.fd)
        return links.create(home.netlink, request, inside=sandbox.netlink)

    try:
        if step.type == "ipvlan":
            from pycni.steps import ipvlan_mode

            made = ipvlan_mode.make_in(kernel, home, master, step.mode, make)
        else:
            made = make()
    except NetlinkError as error:
        error.what = f'create {step.type} "{step.name}" on "{master.name}"'
        raise
    if home is sandbox:
        return made
    try:
        sandbox.request(links.update(made, name=step.name))
    except BaseException:
        sandbox.discard(made)
        raise
    return made.replace(name=step.name)


def _request(step: ChildLink, name: str, master: Link, netns: int | None = None) -> NewLink:
    if step.type == "macvlan":
        return link_kinds.macvlan(
            name,
            master.index,
            step.mode,
            mac=step.mac or None,
            mtu=step.mtu,
            broadcast_queue=step.broadcast_queue or None,
            netns=netns,
        )
    if step.type == "ipvlan":
        return link_kinds.ipvlan(name, master.index, step.mode, mtu=step.mtu, netns=netns)
    return link_kinds.vlan(name, master.index, step.vlan_id, mtu=step.mtu, netns=netns)


def _temporary(step: ChildLink) -> str:
    return hashed_name("tmp", step.name, 15)
