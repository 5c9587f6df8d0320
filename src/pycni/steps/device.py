"""Network devices found by name, hardware address, or where they are on a bus.

A device's place on a bus is read from /sys, which shows the interfaces of the namespace that it
was mounted in. Used by host-device and its step.
"""

from __future__ import annotations

import posix

from pycni.kernel import marks
from pycni.spec.errors import INVALID_CONFIG, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.plan.steps import Device
    from pycni.steps.namespaces import Netns

PCI = "/sys/bus/pci/devices"
AUXILIARY = "/sys/bus/auxiliary/devices"

# Drivers that hand a device to a program; the kernel's network stack does not see it then.
USERSPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")


def locate(site: Netns, device: Device) -> Link:
    """The device's interface. Raises CNIError (code 7) that says where it was looked for."""
    if device.name:
        found = site.find(device.name, altnames=True)
        reason = f"there is no interface {device.name}"
    elif device.mac:
        found = _with_mac(site, device.mac)
        reason = f"no interface has the MAC address {device.mac}"
    else:
        folder = _net_folder(device)
        names = _entries(folder)
        if not names:
            raise CNIError(
                INVALID_CONFIG,
                f"failed to find host device: failed to find network device in path {folder}",
                "the device has no interface on this host: it is in a container already, or "
                "no network driver is bound to it",
            )
        found = site.find(names[0])
        reason = f"there is no interface {names[0]}, which {folder} names"
    if found is None:
        raise CNIError(
            INVALID_CONFIG,
            "failed to find host device: failed to find physical interface",
            f"{reason} on the host; perhaps it is in a container already",
        )
    return found


def _with_mac(site: Netns, mac: str) -> Link | None:
    """The interface of a hardware address: its own before one that it was given."""
    listed = marks.dump(site.netlink)
    matching = [found for found in listed if found.permanent_mac == mac] or [
        found for found in listed if found.mac == mac
    ]
    return site.find(min(found.index for found in matching)) if matching else None


def find(site: Netns, device: Device) -> Link | None:
    """The device's interface, None if it is not there, or nothing says which it is."""
    try:
        return locate(site, device) if device else None
    except CNIError:
        return None


def is_userspace(device: Device) -> bool:
    """Whether a program has the device through vfio or uio (DPDK), so that it has no interface.

    Raises CNIError (code 7) for an id that no bus has.
    """
    folder = _pci_folder(device)
    if not folder:
        return False
    try:
        driver = posix.readlink(f"{folder}/driver")
    except OSError:
        return False  # no driver at all
    return driver.rpartition("/")[2] in USERSPACE_DRIVERS


def _net_folder(device: Device) -> str:
    """The folder in /sys that lists the device's interfaces. Raises CNIError."""
    if device.path:
        return f"{device.path}/net"
    folder = _pci_folder(device)
    if not folder:
        return f"{AUXILIARY}/{device.id}/net"
    if _entries(f"{folder}/net"):
        return f"{folder}/net"
    for entry in _entries(folder):
        if entry.startswith("virtio") and _entries(f"{folder}/{entry}/net"):
            return f"{folder}/{entry}/net"
    raise CNIError(
        INVALID_CONFIG,
        f"failed to find host device: no net directory under pci device {device.id or device.pci}",
        f"{folder} shows no interface: the device is in a container already, or no network "
        "driver is bound to it",
    )


def _pci_folder(device: Device) -> str:
    """The folder of a PCI device; "" for one without a PCI address. Raises CNIError."""
    if not device.id:
        return f"{PCI}/{device.pci}" if device.pci else ""
    if posix.access(f"{PCI}/{device.id}", posix.F_OK):
        return f"{PCI}/{device.id}"
    if posix.access(f"{AUXILIARY}/{device.id}", posix.F_OK):
        return ""
    raise CNIError(
        INVALID_CONFIG,
        f"runtime config DeviceID {device.id} not found or unsupported",
        f"neither {PCI} nor {AUXILIARY} has it",
    )


def _entries(folder: str) -> list[str]:
    try:
        return sorted(posix.listdir(folder))
    except OSError:
        return []
