"""The three places that a container's MAC address can be asked for by, and which one wins."""

from __future__ import annotations

from pycni.spec.args import mac_argument
from pycni.spec.config import NetConf
from pycni.spec.owner import hashed_name
from pycni.spec.schema import Config, MACAddress, Object, field
from pycni.state.files import boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycni.spec.ip import IPNetwork
    from pycni.spec.owner import Owner


class _MAC(Config):
    mac: str = field("mac", MACAddress(), "", doc="the MAC address asked for")


class _Args(Config):
    cni: _MAC = field("cni", Object(_MAC), _MAC(), doc="arguments by convention")


class MACConf(NetConf):
    """Keys for a plugin whose interface's MAC address can be chosen; the base of its config."""

    args: _Args = field("args", Object(_Args), _Args(), doc="free arguments")
    runtime_config: _MAC = field(
        "runtimeConfig", Object(_MAC), _MAC(), doc="what the runtime gives for capability `mac`"
    )


def mac_of_owner(owner: Owner) -> str:
    """A MAC address of an attachment's own, the same each time it is asked for until the next boot.

    Containers of two hosts may have one name, and meet on one network.
    """
    digits = hashed_name("", f"{boot_id()}/{owner.tag}", 10)
    return bytes.fromhex(f"0e{digits}").hex(":")


def mac_from_ip(network: IPNetwork) -> str:
    """The MAC address made from an IPv4 address: 0a:58 and the address, as old releases of the
    reference had it.
    """
    return (b"\x0a\x58" + network.address.packed).hex(":")


def requested_mac(config: Any, cni_args: str) -> str:
    """The MAC address asked for: runtimeConfig's, else args.cni's, else CNI_ARGS'; "" for none."""
    given = mac_argument(cni_args)
    return config.runtime_config.mac or config.args.cni.mac or given
