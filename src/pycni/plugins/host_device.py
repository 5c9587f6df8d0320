"""host-device: moves a network device of the host into the sandbox, and back.

What it makes for an attachment stands in `HostDevicePlugin.plan`, in order. A device that a program
drives by itself (DPDK) stays where it is, and is only listed in the result.
"""

from __future__ import annotations

from pycni.plan.plan import Plan, Reported
from pycni.plan.steps import SANDBOX, Device, MoveDevice
from pycni.sdk.addressing import configure_announced
from pycni.sdk.interface import InterfacePlugin
from pycni.spec.config import NetConf
from pycni.spec.errors import UNAVAILABLE, CNIError, invalid_config
from pycni.spec.schema import Config, Fault, Flag, MACAddress, Object, Text, field
from pycni.steps import device as devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from pycni.sdk.request import Request
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox

_DEVICES = "/sys/devices/"


class DevicePath(Text):
    """The folder of a device; decoded to its path below /sys/devices, without `..` and the like."""

    expected = f"an absolute path that begins with {_DEVICES}"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> str:
        import os  # hardly any configuration has a path

        text = super().decode(value, path, faults)
        normal = os.path.normpath(text) if text else ""
        if normal and not normal.startswith(_DEVICES):
            problem = f'kernel device path "{text}" must be absolute and begin with {_DEVICES}'
            faults.append(Fault(path, problem, f"expected {self.expected}"))
            return ""
        return normal


class BusAddress(Text):
    """The address of a device on a bus, which names its folder there."""

    expected = "an address such as 0000:3b:00.1"

    def __init__(self, refusal: str) -> None:
        super().__init__()
        self._refusal = refusal

    def decode(self, value: Any, path: str, faults: list[Fault]) -> str:
        text = super().decode(value, path, faults)
        if "/" in text or text in (".", ".."):
            faults.append(Fault(path, self._refusal.format(text), f"expected {self.expected}"))
            return ""
        return text


class HostDeviceRuntimeConfig(Config):
    """What a runtime gives for the capability deviceID."""

    device_id: str = field(
        "deviceID", BusAddress("runtime config DeviceID {} not found or unsupported"), "",
        doc="its address on the PCI or auxiliary bus; capability `deviceID`",
    )  # fmt: skip


class HostDeviceConfig(NetConf):
    """The keys of host-device: how to find the device. The first that is given counts."""

    device: str = field("device", Text(), "", doc="name of its interface on the host")
    hwaddr: str = field(
        "hwaddr",
        MACAddress(),
        "",
        doc="its MAC address: the permanent one comes before one that was set",
    )
    kernelpath: str = field("kernelpath", DevicePath(), "", doc="its folder below `/sys/devices/`")
    pci_bus_id: str = field(
        "pciBusID", BusAddress('"{}" is not an address on the PCI bus'), "",
        doc="its address on the PCI bus; virtio devices too",
    )  # fmt: skip
    dpdk_mode: bool = field(
        "DPDKMode",
        Flag(),
        False,
        doc="a program drives the device (DPDK); found out where its PCI address is given",
    )
    runtime_config: HostDeviceRuntimeConfig = field(
        "runtimeConfig",
        Object(HostDeviceRuntimeConfig),
        HostDeviceRuntimeConfig(),
        doc="what the runtime gives",
    )

    @property
    def selected(self) -> Device:
        """The device meant. deviceID comes in the place of pciBusID."""
        return Device(
            self.device,
            self.hwaddr,
            self.kernelpath,
            self.runtime_config.device_id,
            self.pci_bus_id,
        )


class HostDevicePlugin(InterfacePlugin):
    """A device of the host in the sandbox."""

    type: ClassVar[str] = "host-device"
    config = HostDeviceConfig

    def resolve(self, config: HostDeviceConfig) -> HostDeviceConfig:
        device = config.selected
        if not device:
            raise invalid_config(
                'specify either "device", "hwaddr", "kernelpath" or "pciBusID"',
                'or have the runtime give runtimeConfig.deviceID, with the capability "deviceID"',
            )
        if device.id or device.pci:
            return config.replace(dpdk_mode=devices.is_userspace(device))
        return config

    def check_status(self, config: HostDeviceConfig, kernel: HostAndSandbox) -> None:
        device = config.selected
        if not device:
            return  # the runtime names it with each ADD
        try:
            if not self.resolve(config).dpdk_mode:
                devices.locate(kernel.host, device)
        except CNIError as error:
            raise CNIError(UNAVAILABLE, error.message, error.details) from None

    def plan(self, request: Request, config: HostDeviceConfig, network: Result) -> Plan:
        ifname = request.ifname
        if config.dpdk_mode:
            return Plan((), (Reported(SANDBOX, ifname, in_kernel=False),))
        addresses = configure_announced(ifname, network, announced=bool(config.ipam_type))
        return Plan((MoveDevice(ifname, config.selected), *addresses), (Reported(SANDBOX, ifname),))


plugin = HostDevicePlugin()
