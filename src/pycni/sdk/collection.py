"""GC of a plugin with a plan: remove what a network left for attachments that are not kept.

What is noted of such an attachment goes first, each under its lock and all of it: an operation that
is under way ends before, and what was attached since GC was called is kept, for the caller cannot
have known it. Then goes what nothing is noted of, by its marks; addresses are released last.
"""

from __future__ import annotations

from pycni.sdk.ipam import have_ipam, needs_link
from pycni.sdk.netns import all_identities, disregard_other_host, is_attached, plugin_type
from pycni.spec.config import LEGACY_ATTACHMENTS, VALID_ATTACHMENTS
from pycni.spec.errors import TRY_AGAIN_LATER, CNIError, join_errors
from pycni.spec.identity import now
from pycni.spec.owner import Owner, Owners
from pycni.state import attachments
from pycni.state.attachments import AttachmentLock
from pycni.state.files import LOCK_TIMEOUT
from pycni.steps import executor, ownership
from pycni.steps.namespaces import HostAndSandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment
    from pycni.spec.identity import Identity

    class Collector(Protocol):
        """A plugin that does GC this way: see `pycni.sdk.planned.PlannedPlugin`."""

        @property
        def kinds(self) -> tuple[str, ...]: ...

        @property
        def makes_link(self) -> bool: ...


_AT_ONCE = 128  # attachments whose locks are held together


def collect(plugin: Collector, request: Request, keep: frozenset[Attachment]) -> None:
    """Do a plugin's GC. Raises CNIError."""
    began = now()
    network = request.network
    failures: list[CNIError] = []
    early = needs_link(request)
    if early:
        failures += have_ipam(request, "GC")
    kept = {Owner(network, item.container_id, item.ifname).tag for item in keep}
    stale = [tag for tag in attachments.tags(network) if tag not in kept]
    with HostAndSandbox(None, is_attached=is_attached) as kernel:
        failures += _collect_noted(plugin, plugin_type(request), stale, began, kernel)
        others = Owners(
            network,
            keep=keep,
            is_attached=attachments.is_noted,
            noted=lambda: [item.container_id for item in _noted(network)],
        )
        failures += executor.collect(plugin.kinds, kernel, others)
    if not early:
        failures += have_ipam(_keeping_noted(request, keep), "GC")
    if failures:
        raise join_errors(failures)


def remove_leftovers(owner: Owner, began: float) -> None:
    """Remove all that pycni's plugins have left of an attachment that is gone, but for its leases.

    began: when it was found to be gone, by `pycni.spec.identity.now`; what was
    attached since is another one, and stays. Raises CNIError; what failed is then still noted.
    """
    with (
        AttachmentLock(owner, deleting=True) as lock,
        HostAndSandbox(None, is_attached=is_attached) as kernel,
    ):
        disregard_other_host(kernel, lock)
        if lock.identity is not None and lock.identity.since > began:
            return
        failures = [lock.problem] if lock.problem is not None else []
        if lock.identity is not None:
            failures += executor.retire(kernel, lock.identity)
        failures += executor.collect(
            executor.MARKED_KINDS, kernel, Owners(owner.network, (owner.attachment,))
        )
        if lock.identity is not None:
            failures += executor.remove_own_links(lock.identity, all_identities)
            failures += attachments.remove_files(lock.identity)
        if failures:
            raise join_errors(failures)
        if lock.is_known:
            lock.remove()


def _collect_noted(
    plugin: Collector, caller: str, tags: list[str], began: float, kernel: HostAndSandbox
) -> list[CNIError]:
    """Remove what is noted of attachments, by their tags. Returns what failed.

    caller: the plugin's type, as the configuration has it.
    """
    failures: list[CNIError] = []
    busy: list[str] = []
    for start in range(0, len(tags), _AT_ONCE):
        some = tags[start : start + _AT_ONCE]
        failures += _collect_some(plugin, caller, some, began, kernel, busy)
    for tag in busy:  # while nothing else is held for which others would have to wait
        failures += _collect_some(plugin, caller, [tag], began, kernel)
    return failures


def _collect_some(
    plugin: Collector,
    caller: str,
    tags: list[str],
    began: float,
    kernel: HostAndSandbox,
    busy: list[str] | None = None,
) -> list[CNIError]:
    """The same for some, whose locks are held together.

    busy: gets those on which another operation works; without it, they are waited for.
    """
    failures: list[CNIError] = []
    locked: list[AttachmentLock] = []
    try:
        for tag in tags:
            noted = attachments.read(tag)
            if noted is None or noted.owner.tag != tag:
                attachments.remove_abandoned(tag)
                continue
            if noted.since > began or not ownership.is_of_host(kernel, noted):
                continue
            timeout = LOCK_TIMEOUT if busy is None else 0.0
            try:
                lock = AttachmentLock(noted.owner, timeout=timeout).__enter__()
            except CNIError as error:
                if busy is not None and error.code == TRY_AGAIN_LATER:
                    busy.append(tag)
                else:
                    failures.append(error)
                continue
            disregard_other_host(kernel, lock)
            if lock.identity is None or lock.identity.since > began:
                lock.close()
            else:
                locked.append(lock)
        failures += _remove(plugin, caller, locked, kernel)
    finally:
        for lock in locked:
            lock.close()
    return failures


def _remove(
    plugin: Collector, caller: str, locked: list[AttachmentLock], kernel: HostAndSandbox
) -> list[CNIError]:
    """Remove what locked attachments have, and the notes of those of which all went."""
    noted = [(lock, lock.identity) for lock in locked if lock.identity is not None]
    if not noted:
        return []
    addresses: dict[str, list[str]] = {}
    for _, identity in noted:
        for kind in identity.kinds:
            addresses.setdefault(kind, []).extend(identity.addresses)
    theirs = [identity.owner.attachment for _, identity in noted]
    owners = Owners(noted[0][1].owner.network, theirs, addresses=addresses)
    kinds: dict[str, None] = {}
    if plugin.makes_link:  # what came last goes first
        for _, identity in noted:
            kinds.update(dict.fromkeys(reversed(identity.kinds)))
    kinds.update(dict.fromkeys(plugin.kinds))
    failures = executor.collect(kinds, kernel, owners)  # of which is not known
    if failures:
        return failures
    for lock, identity in noted:
        failures += _remove_noted(plugin, caller, lock, identity)
    return failures


def _remove_noted(
    plugin: Collector, caller: str, lock: AttachmentLock, identity: Identity
) -> list[CNIError]:
    """Remove an attachment's links and files, and then its note. Returns what failed."""
    failures: list[CNIError] = []
    if plugin.makes_link:
        failures += executor.remove_own_links(identity, all_identities)
        failures += attachments.remove_files(identity)
    if failures:
        return failures
    left = identity.without_parts(lambda part: part.plugin == caller)
    try:
        if left is None or plugin.makes_link:
            lock.remove()
        else:
            lock.write(left)
    except CNIError as error:
        return [error]
    return []


def _keeping_noted(request: Request, keep: frozenset[Attachment]) -> Request:
    """The request for an address plugin, which also keeps what is noted still or by now."""
    if not request.ipam_type:
        return request
    noted = _noted(request.network)
    if noted <= keep:
        return request
    listed = [
        {"containerID": item.container_id, "ifname": item.ifname}
        for item in sorted(noted | keep, key=lambda item: (item.container_id, item.ifname))
    ]
    document = {**request.document, VALID_ATTACHMENTS: listed, LEGACY_ATTACHMENTS: listed}
    return request.replace(document=document)


def _noted(network: str) -> set[Attachment]:
    """The network's attachments that are noted."""
    return {
        identity.owner.attachment
        for tag in attachments.tags(network)
        if (identity := attachments.read(tag)) is not None
    }
