"""What this node notes of attachments (`pycni.state.attachments`), as the runtime needs it.

A path may lead to another container's namespace by now: plugins are never called with it then. What
plugins that are not pycni's attach, pycni's runtime notes itself.
"""

from __future__ import annotations

import _socket

from pycni.kernel import namespace
from pycni.spec.identity import Identity, NetnsID, Part, now
from pycni.state import attachments
from pycni.state.attachments import AttachmentLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from pycni.kernel.namespace import Namespace
    from pycni.spec.owner import Owner

RUNTIME = "pycni"  # stands among the plugins of a note that the runtime made
_MISSING = f"{RUNTIME}/"  # and before the type of one that was missing at a DEL


def noted(owner: Owner) -> Identity | None:
    """What is noted of an attachment to this host; None for nothing."""
    identity = attachments.read(owner.tag)
    if identity is None or identity.owner != owner:
        return None
    return identity if identity.host is None or _is_here(identity.host) else None


def noted_path(owner: Owner) -> str:
    """The path at ADD of an attachment's namespace, "" if nothing is noted."""
    identity = noted(owner)
    return "" if identity is None else identity.path


def own_path(owner: Owner, path: str) -> str:
    """The path of the attachment's own namespace: the one given, that of its ADD, or "".

    A path that leads to no namespace (any more) is given back as it is.
    """
    identity = noted(owner)
    if identity is None or identity.netns is None:
        return path
    if _leads_to(path, identity.netns) is not False:
        return path
    return identity.path if _leads_to(identity.path, identity.netns) else ""


def is_same_path(earlier: str, path: str) -> bool:
    """Whether two paths lead to one namespace; the same text does, if nothing can be opened."""
    try:
        with namespace.open_path(earlier) as one, namespace.open_path(path) as other:
            return one.same_as(other)
    except OSError:
        return earlier == path


def has_interface(path: str, name: str) -> bool | None:
    """Whether a namespace has an interface of a name; None where there is no namespace."""
    try:
        with namespace.open_path(path) as space, space.enter():
            # By their names proper: alternative ones are anybody's.
            return any(name == found for _, found in _socket.if_nameindex())
    except OSError:
        return None


def note(owner: Owner, path: str) -> None:
    """Note an attachment that other plugins than pycni's made. Raises CNIError."""
    with AttachmentLock(owner, adding=True) as lock, namespace.current() as host:
        known = lock.identity
        try:
            with namespace.open_path(path) as space:
                netns = _id(space)
        except OSError:
            return  # no namespace: what was made is not one's own business
        if known is None or known.netns is None or not known.netns.is_same(netns):
            known = Identity(owner, path, netns, _id(host), now())
        if RUNTIME not in known.plugins:
            lock.write(known.with_part(RUNTIME, awaits_delete=True))


def note_missing(owner: Owner, missing: Collection[str]) -> set[str]:
    """Those of some plugins that are missing at a DEL whose part another one removes.

    They have one, or had it at an earlier DEL that failed: so that is noted until `forget`. Raises
    CNIError.
    """
    if noted(owner) is None:
        return set()
    with AttachmentLock(owner) as lock:
        known = lock.identity
        if known is None:
            return set()
        having = {kind for kind in missing if kind in known.plugins}
        changed = known
        for kind in sorted(having):
            changed = changed.with_part(f"{_MISSING}{kind}", awaits_delete=True)
        if changed != known:
            lock.write(changed)
        return {kind for kind in missing if f"{_MISSING}{kind}" in changed.plugins}


def forget(owner: Owner) -> None:
    """Forget what the runtime noted. Raises CNIError."""
    if not attachments.is_noted(owner.tag):
        return
    with AttachmentLock(owner) as lock:
        known = lock.identity
        if known is None or not any(map(_is_runtimes, known.parts)):
            return
        left = known.without_parts(_is_runtimes)
        if left is None:
            lock.remove()
        else:
            lock.write(left)


def _is_runtimes(part: Part) -> bool:
    return part.plugin == RUNTIME or part.plugin.startswith(_MISSING)


def _is_here(host: NetnsID) -> bool:
    """Whether the calling thread is in a namespace, by the file, as far as can be found out."""
    try:
        with namespace.current() as here:
            return (here.device, here.inode) == (host.device, host.inode)
    except OSError:
        return True


def _leads_to(path: str, netns: NetnsID) -> bool | None:
    """Whether a path leads to a namespace; None if it leads to none at all."""
    if not path:
        return None
    try:
        with namespace.open_path(path) as found:
            return _id(found).is_same(netns)
    except OSError:
        return None


def _id(space: Namespace) -> NetnsID:
    return NetnsID(space.device, space.inode, space.cookie)
