"""subnet.env: what flanneld writes for the plugin on its host. Used by flannel."""

from __future__ import annotations

from pycni.spec.errors import TRY_AGAIN_LATER, CNIError
from pycni.spec.ip import IPNetwork, parse_network
from pycni.spec.record import Record
from pycni.state.files import read_file

MAX_MTU = (1 << 32) - 1


class SubnetEnv(Record):
    """The overlay's networks, this host's subnets of them, and how to reach the others.

    mtu: bytes; masquerades: whether flanneld does, so that the plugin need not.
    """

    networks: tuple[IPNetwork, ...]
    subnets: tuple[IPNetwork, ...]
    mtu: int
    masquerades: bool


def load(path: str) -> SubnetEnv:
    """Read the file. Raises CNIError (code 11: flanneld may just not have come so far)."""
    try:
        text = read_file(path).decode("utf-8", "replace")
    except OSError as error:
        raise _failure(f"open {path}: {error.strerror}", path) from None
    values = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            values[key.strip()] = value.strip()
    networks: list[IPNetwork] = []
    subnets: list[IPNetwork] = []
    for family in ("", "IPV6_"):
        for key, found in (
            (f"FLANNEL_{family}NETWORK", networks),
            (f"FLANNEL_{family}SUBNET", subnets),
        ):
            for item in values.get(key, "").split(","):
                network = _network(key, item.strip(), path) if item.strip() else None
                if network is not None and network not in found:
                    found.append(network)
    missing = []
    if not networks:
        missing += ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]
    if not subnets:
        missing += ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]
    missing += [key for key in ("FLANNEL_MTU", "FLANNEL_IPMASQ") if not values.get(key)]
    if missing:
        raise _failure(f"{path} is missing {', '.join(missing)}", path)
    mtu = values["FLANNEL_MTU"]
    if not (mtu.isascii() and mtu.isdigit() and int(mtu) <= MAX_MTU):
        raise _failure(f'FLANNEL_MTU is "{mtu}", no number of bytes', path)
    return SubnetEnv(tuple(networks), tuple(subnets), int(mtu), values["FLANNEL_IPMASQ"] == "true")


def _network(key: str, text: str, path: str) -> IPNetwork:
    try:
        return parse_network(text).network
    except ValueError as error:
        raise _failure(f"{key}: {error}", path) from None


def _failure(what: str, path: str) -> CNIError:
    return CNIError(
        TRY_AGAIN_LATER,
        f"failed to load flannel 'subnet.env' file: {what}",
        f"flanneld writes {path} once it has a lease: see whether it runs on this host, "
        'and whether "subnetFile" is where it writes',
    )
