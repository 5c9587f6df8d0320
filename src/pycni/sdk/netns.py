"""Opening an attachment for one operation: its lock, what is noted of it, host and sandbox.

There is an error for each way in which the namespace that a request names can be wrong.
"""

from __future__ import annotations

from pycni.kernel import namespace
from pycni.plan.steps import SANDBOX
from pycni.spec.errors import (
    ALREADY_EXISTS,
    CHECK_FAILED,
    INVALID_ENVIRONMENT,
    INVALID_NETNS,
    NEEDS_ROOT,
    CNIError,
)
from pycni.spec.versions import SINCE, at_least
from pycni.state import attachments
from pycni.state.attachments import HELD, AttachmentLock
from pycni.steps import executor, ownership
from pycni.steps.namespaces import HostAndSandbox, Netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycni.kernel.namespace import Namespace
    from pycni.sdk.request import Request
    from pycni.spec.identity import Identity
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owner
    from pycni.spec.result import Result


def open_sandbox(request: Request) -> HostAndSandbox:
    """An attachment for ADD, CHECK or repair, locked until the end of the `with` block.

    Raises CNIError: code 8 if the sandbox cannot be opened, code 4 if an ADD finds the attachment
    alive in another namespace, code 101 if a CHECK finds another namespace than that of the ADD.
    """
    notes = locked(request, adding=request.command == "ADD").__enter__()
    try:
        kernel = HostAndSandbox(
            _open_or_explain(request),
            request.netns,
            request.cancel,
            _claim(request, notes),
            is_attached,
        )
    except BaseException:
        notes.close()
        raise
    try:
        disregard_other_host(kernel, notes)
        if not ownership.is_own_namespace(notes.identity, kernel.netns(SANDBOX)):
            if request.command != "ADD":
                raise _replaced(request)
            supersede(kernel, files=True)
    except BaseException:
        kernel.close(failed=True)
        raise
    return kernel


def find_sandbox(request: Request) -> HostAndSandbox:
    """The same for DEL, which goes on without a sandbox where its own is not there any more."""
    notes = locked(request, deleting=True).__enter__()

    def find(host_ns: Namespace) -> Netns | None:
        return _own_sandbox(request, notes.identity, host_ns)

    try:
        kernel = HostAndSandbox(find, request.netns, None, _claim(request, notes), is_attached)
    except BaseException:
        notes.close()
        raise
    try:
        disregard_other_host(kernel, notes)
    except BaseException:
        kernel.close(failed=True)
        raise
    return kernel


def locked(request: Request, *, adding: bool = False, deleting: bool = False) -> AttachmentLock:
    """A context manager: the attachment's lock, unless the request's caller has it already."""
    owner = request.owner
    return AttachmentLock(
        owner,
        adding=adding,
        deleting=deleting,
        lockless=request.environ.get(HELD) == owner.tag,
        cancel=request.cancel,
    )


def disregard_other_host(kernel: HostAndSandbox, notes: AttachmentLock) -> None:
    """Take what is noted for nothing if it is of an attachment to another host's network.

    Hosts that share /run may have containers of one name.
    """
    if notes.identity is not None and not ownership.is_of_host(kernel, notes.identity):
        notes.disregard()


def supersede_if_gone(kernel: HostAndSandbox, ifname: str) -> None:
    """`supersede` an attachment to the same sandbox whose interface is not there any more."""
    identity = kernel.identity
    if (
        identity is not None
        and identity.has_made_links
        and ownership.own_link(kernel, ifname) is None
    ):
        supersede(kernel)


def supersede(kernel: HostAndSandbox, *, files: bool = False) -> None:
    """Remove what is left of an earlier attachment of the same owner.

    files: and what plugins keep for its DEL, for what that is about has gone with the namespace.
    Raises CNIError: code 4 if that one is alive, or what removing it failed with.
    """
    claim = kernel.claim
    if claim is None or claim.identity is None:
        return
    earlier = claim.identity
    if earlier.has_made_links and ownership.is_in_place(kernel, earlier):
        raise CNIError(
            ALREADY_EXISTS,
            f"container {claim.owner.container_id} is attached to network {claim.owner.network} by "
            f"{claim.owner.ifname} already, in the namespace {earlier.path}",
            "DEL comes before another ADD; a container in another namespace has another id",
        )
    failures = executor.retire(kernel, earlier)
    if files:
        failures += attachments.remove_files(earlier)
    if failures:
        raise failures[0]
    claim.notes.start_over()


def without_others(kernel: HostAndSandbox, owner: Owner, known: Result) -> Result:
    """What is known of an attachment, without addresses that another one has by now."""

    def is_anothers(address: IPAddress) -> bool:
        tag = attachments.holder(owner.network, str(address))
        return tag not in ("", owner.tag) and bool(kernel.is_attached(tag))

    ips = tuple(entry for entry in known.ips if not is_anothers(entry.address.address))
    return known if len(ips) == len(known.ips) else known.replace(ips=ips)


def evict(kernel: HostAndSandbox, addresses: Result) -> None:
    """Remove what attachments that are gone left for addresses that this one has been given.

    Their leases ended in another way than by DEL. Raises CNIError.
    """
    if kernel.claim is None:
        return
    owner = kernel.claim.owner
    for entry in addresses.ips:
        tag = attachments.holder(owner.network, str(entry.address.address))
        if tag in ("", owner.tag):
            continue
        earlier = attachments.read(tag)
        if earlier is None or not ownership.is_of_host(kernel, earlier):
            continue
        if ownership.is_alive(kernel, earlier):
            continue
        with AttachmentLock(earlier.owner, timeout=0) as notes:
            if notes.identity != earlier:
                continue
            failures = [*executor.retire(kernel, earlier), *attachments.remove_files(earlier)]
            if failures:
                raise failures[0]
            notes.remove()


def is_attached(kernel: HostAndSandbox, tag: str) -> bool | None:
    """Whether the attachment with an owner's tag is there; None if nothing is noted of it."""
    identity = attachments.read(tag)
    if identity is None or not ownership.is_of_host(kernel, identity):
        return None
    return ownership.is_alive(kernel, identity)


def _claim(request: Request, notes: AttachmentLock) -> ownership.Claim:
    return ownership.Claim(
        notes,
        plugin_type(request),
        previous=lambda: _previous(request),
        by_name=not at_least(request.version, SINCE["CHECK"]),
        others=all_identities,
    )


def plugin_type(request: Request) -> str:
    """The type of the plugin that is called, as the configuration has it."""
    kind = request.document.get("type")
    return kind if isinstance(kind, str) else ""


def _previous(request: Request) -> Result | None:
    try:
        return request.prev_result
    except CNIError:
        return None  # DEL goes on without one that cannot be read; the others refuse it themselves


def all_identities() -> Iterator[Identity]:
    """What is noted of each attachment of the node."""
    for tag in attachments.tags():
        identity = attachments.read(tag)
        if identity is not None:
            yield identity


def _own_sandbox(request: Request, identity: Identity | None, host_ns: Namespace) -> Netns | None:
    """The attachment's own sandbox, at the path of the request or at that of its ADD."""
    paths = [request.netns]
    if identity is not None and identity.path not in paths:
        paths.append(identity.path)
    for path in paths:
        if not path and (request.netns_fd is None or path != request.netns):
            continue
        try:
            space = _open(request) if path == request.netns else namespace.open_path(path)
        except (namespace.NamespaceNotFound, namespace.NotANamespace):
            continue
        except OSError as error:
            raise _explained(request, error) from error
        site = Netns(space, path, host_ns)
        if ownership.is_own_namespace(identity, site):
            return site
        site.close()
    return None


def _open_or_explain(request: Request) -> Namespace:
    try:
        return _open(request)
    except OSError as error:
        raise _explained(request, error) from error


def _open(request: Request) -> Namespace:
    if request.netns_fd is not None:
        return namespace.from_fd(request.netns_fd)
    return namespace.open_path(request.netns)


def _explained(request: Request, error: OSError) -> CNIError:
    message = f'failed to open netns "{request.netns}": {error.strerror}'
    if isinstance(error, PermissionError):
        details = NEEDS_ROOT
        return CNIError(INVALID_ENVIRONMENT, message, details)
    details = (
        "CNI_NETNS must be the path of a network namespace, such as /run/netns/NAME "
        "or /proc/PID/ns/net"
    )
    return CNIError(INVALID_NETNS, message, details)


def _replaced(request: Request) -> CNIError:
    return CNIError(
        CHECK_FAILED,
        f"the namespace at {request.netns} is not that of {request.container_id}'s attachment",
        "it is another container's by now; delete this attachment, which leaves that one alone",
    )
