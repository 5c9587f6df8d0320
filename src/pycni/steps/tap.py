"""A tap in the sandbox (`plan.steps.Tap`), made by ioctl on /dev/net/tun (linux/if_tun.h)."""

from __future__ import annotations

import errno
import posix
from _struct import Struct
from fcntl import ioctl

from pycni.kernel import link as links
from pycni.plan.steps import SANDBOX
from pycni.spec.errors import INVALID_CONFIG, KERNEL_REFUSED, CNIError
from pycni.steps import ownership
from pycni.steps.bridge import plug_in
from pycni.steps.child_link import require_free

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Tap
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns

DEVICE = "/dev/net/tun"

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_TUNSETGROUP = 0x400454CE
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_IFREQ = Struct("=16sH22x")

_EXEC_LABEL = "/proc/thread-self/attr/exec"
_FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"


def apply(step: Tap, kernel: HostAndSandbox) -> Undo:
    sandbox = kernel.netns(SANDBOX)
    require_free(step.name, sandbox)
    master = _bridge(step, sandbox)
    with sandbox.enter():
        if step.selinux_context:
            _create_labelled(step)
        else:
            _create(step)
    try:
        made = sandbox.link(step.name)
        if step.mtu or step.mac or master:
            change = links.update(made, mtu=step.mtu or None, mac=step.mac or None, master=master)
            plug_in(sandbox, step.bridge, change)
            sandbox.forget(step.name)
    except BaseException:
        sandbox.discard(step.name)
        raise
    return lambda: sandbox.discard(made)


def check(step: Tap, kernel: HostAndSandbox) -> list[str]:
    sandbox = kernel.netns(SANDBOX)
    found = sandbox.find(step.name)
    if found is None:
        return []  # reported where the interfaces of the result are checked
    if found.kind != "tun":
        return [f"interface {step.name} is not a tap"]
    if step.bridge:
        bridge = sandbox.find(step.bridge, altnames=True)
        if bridge is None or found.master != bridge.index:
            return [f"tap {step.name} is not plugged into bridge {step.bridge}"]
    return []


def repair(step: Tap, kernel: HostAndSandbox) -> None:
    sandbox = kernel.netns(SANDBOX)
    found = sandbox.find(step.name)
    if found is None:
        require_free(step.name, sandbox)
        remove(step, kernel)  # what its container renamed
        apply(step, kernel)
    elif found.kind == "tun" and step.bridge:
        master = sandbox.link(step.bridge, altnames=True).index
        change = links.update(found, master=master)
        plug_in(sandbox, step.bridge, change)


def remove(step: Tap, kernel: HostAndSandbox) -> None:
    found = ownership.own_link(kernel, step.name)
    if found is not None and found.kind == "tun" and kernel.sandbox is not None:
        kernel.sandbox.discard(found)


def _bridge(step: Tap, sandbox: Netns) -> int | None:
    if not step.bridge:
        return None
    found = sandbox.find(step.bridge, altnames=True)
    if found is None or found.kind != "bridge":
        reason = "Link not found" if found is None else f"it is of type {found.kind}"
        raise CNIError(
            INVALID_CONFIG,
            f"failed to get bridge {step.bridge}: {reason}",
            f'"bridge" names a bridge inside the sandbox {sandbox.path}, which must be there '
            "before the tap",
        )
    return found.index


def _create(step: Tap) -> None:
    """Make it in the thread's namespace. Until it is made to persist it goes with the descriptor.

    The flag for the header of virtio-net is no property of a tap: a program that opens it decides.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    if step.multi_queue:
        flags |= _IFF_MULTI_QUEUE
    descriptor = posix.open(DEVICE, posix.O_RDWR | posix.O_CLOEXEC)
    try:
        ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(step.name.encode(), flags))
        for command, number in ((_TUNSETOWNER, step.owner), (_TUNSETGROUP, step.group)):
            if number is not None:
                ioctl(descriptor, command, number if number < 1 << 31 else number - (1 << 32))
        ioctl(descriptor, _TUNSETPERSIST, 1)
    except OSError as error:
        reason = f"create tap: {error.strerror}"
        raise OSError(error.errno or errno.EIO, reason, step.name) from None
    finally:
        posix.close(descriptor)


def _create_labelled(step: Tap) -> None:
    """Make it through `ip`, run in the context: SELinux gives a tap that of its maker."""
    from pycni.kernel import process

    program = process.find("ip", _FOLDERS)
    if program is None:
        raise CNIError(
            KERNEL_REFUSED,
            "failed to create tap: no program ip",
            f'"selinuxContext" needs iproute2; looked in {_FOLDERS}',
        )
    argv = [program, "tuntap", "add", "mode", "tap", "name", step.name]
    if step.multi_queue:
        argv.append("multi_queue")
    if step.owner is not None:
        argv += ["user", str(step.owner)]
    if step.group is not None:
        argv += ["group", str(step.group)]
    _set_exec_label(step.selinux_context)
    try:
        code, _, stderr = process.run(argv)
    finally:
        _set_exec_label("")
    if code:
        words = stderr.decode("utf-8", "replace").strip()
        raise CNIError(KERNEL_REFUSED, f"failed to create tap: {words}", " ".join(argv))


def _set_exec_label(context: str) -> None:
    """Set the context of the next program that this thread starts; "" for the usual one."""
    try:
        descriptor = posix.open(_EXEC_LABEL, posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(descriptor, context.encode())
        finally:
            posix.close(descriptor)
    except OSError as error:
        raise CNIError(
            INVALID_CONFIG,
            f"failed set socket label: {context}: {error.strerror}",
            '"selinuxContext" must be a context that SELinux, in use on this host, knows and '
            "lets the plugin start programs in",
        ) from None
