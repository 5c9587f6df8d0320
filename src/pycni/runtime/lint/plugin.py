"""What is wrong with one plugin's configuration, by the class in which the plugin declares it.

Of a plugin that is not pycni's only the specification's part is judged, and that there is one.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from pycni.plugins import NAMES, load
from pycni.runtime.config import LIST_KEYS
from pycni.runtime.lint.between_keys import faults_between_keys, join
from pycni.sdk.chained import ChainedPlugin
from pycni.sdk.interface import InterfacePlugin
from pycni.spec.config import ipam_type
from pycni.spec.jsontext import lookup
from pycni.spec.schema import Anything, Fault, ListOf, MapOf, Object, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from pycni.sdk.plugin import Plugin
    from pycni.spec.config import NetConf
    from pycni.spec.schema import Config, Field, Kind

# Capabilities by convention: what a plugin that is not known here may declare.
CAPABILITIES = frozenset(
    {
        "portMappings", "ipRanges", "bandwidth", "dns", "ips", "mac", "infinibandGUID", "deviceID",
        "aliases", "cgroupPath",
    }
)  # fmt: skip

# Plugins of others, by the types that their documentation uses: a configuration may be looked at
# where they are not installed.
OTHERS = frozenset(
    {
        "accelerated-bridge", "antrea", "aws-cni", "azure-ipam", "azure-vnet", "azure-vnet-ipam",
        "bond", "calico", "calico-ipam", "cilium-cni", "cnitool", "coordinator", "dnsname",
        "egress-cni", "egress-v4-cni", "egress-v6-cni", "genie", "ib-sriov", "istio-cni",
        "kube-ovn", "linkerd-cni", "macvtap", "meshnet", "multus", "multus-shim", "node-local",
        "ovn-k8s-cni-overlay", "ovs", "rdma", "route-override", "spiderpool", "sriov",
        "tailscale", "terway", "userspace", "vpc-bridge", "vpc-eni", "vpc-shared-eni",
        "weave-ipam", "weave-net", "whereabouts", "win-bridge", "win-overlay",
    }
)  # fmt: skip

_LIST_ONLY = frozenset(LIST_KEYS) - {"name", "cniVersion"} | {"plugins"}
FROM_RUNTIME = ("prevResult", "runtimeConfig")
RESERVED = "cni.dev/"
_SHARED_KEYS = ("name", "cniversion", "type")


def plugin_faults(
    document: Mapping[str, Any],
    own: Mapping[str, Any],
    path: str,
    index: int,
    others: Collection[str],
) -> Iterator[Fault]:
    """What is wrong with a plugin's configuration.

    document: as the plugin will get it; own: as it stands in the file, at `path`; index: in its
    list; others: the types of plugins that there are besides pycni's.
    """
    kind = lookup(own, "type")
    if not isinstance(kind, str) or not kind:
        return
    if kind not in NAMES:
        yield from _unknown_plugin(kind, NAMES, others, path)
        return
    plugin = load(kind)
    address_plugin = _address_plugin(own)
    found = plugin.config.errors(document)
    yield from (_within(path, fault, own) for fault in found)
    yield from _unknown_keys(plugin.config, own, path, _is_list_key)
    yield from _capability_faults(plugin, address_plugin, own, path)
    yield from faults_between_keys(own, path)
    if index == 0 and isinstance(plugin, ChainedPlugin):
        yield Fault(
            join(path, "type"),
            f"{kind} cannot come first",
            "it works on the interface that a plugin before it has made",
        )
    ipam = lookup(own, "ipam")
    if isinstance(plugin, InterfacePlugin) and plugin.needs_ipam and not ipam_type(ipam):
        yield Fault(
            join(path, "ipam"), "missing", f"{kind} needs addresses: host-local, static or dhcp"
        )
    if ipam is not None and not isinstance(ipam, dict):
        yield Fault(join(path, "ipam"), f"{describe(ipam)} is not valid", "expected an object")
    elif ipam:
        yield from _lint_ipam(address_plugin, ipam, document, join(path, "ipam"), others)


def _unknown_plugin(
    kind: str, known: Sequence[str], others: Collection[str], path: str
) -> Iterator[Fault]:
    """What to say of a type that is none of pycni's."""
    if kind in others:
        return
    meant = get_close_matches(kind, known, 1, 0.75)
    yield Fault(
        join(path, "type"),
        f'no plugin "{kind}"',
        f'did you mean "{meant[0]}"?' if meant else "--plugin-dir says where those of others are",
    )


def _lint_ipam(
    plugin: Plugin | None,
    ipam: Mapping[str, Any],
    document: Mapping[str, Any],
    path: str,
    others: Collection[str],
) -> Iterator[Fault]:
    kind = lookup(ipam, "type")
    if kind is None:
        yield Fault(join(path, "type"), "missing", "expected the address plugin's name")
        return
    if not isinstance(kind, str):
        yield Fault(join(path, "type"), f"{describe(kind)} is not valid", "expected a string")
        return
    if plugin is None:
        addressing = [name for name in NAMES if _declares_ipam(load(name).config)]
        yield from _unknown_plugin(kind, addressing, others, path)
        return
    alone = {key: value for key, value in document.items() if key.lower() in _SHARED_KEYS}
    for fault in plugin.config.errors({**alone, "ipam": ipam}):
        inner = fault.path.removeprefix("ipam").removeprefix(".")
        yield _within(path, Fault(inner, fault.problem, fault.expected), ipam)
    for declared in _declared(plugin.config):
        if declared.key == "ipam" and isinstance(declared.kind, Object):
            yield from _unknown_keys(declared.kind.config, ipam, path)


def _unknown_keys(
    config: type[Config],
    document: Mapping[str, Any],
    path: str,
    special: Callable[[str, str], Fault | None] = lambda *_: None,
) -> Iterator[Fault]:
    declared = {item.key.lower(): item for item in _declared(config)}
    for key, value in document.items():
        item = declared.get(key.lower())
        if item is None:
            where = join(path, key)
            yield special(key, where) or _unknown(key, where, config)
        elif key == "args":
            continue  # free by the specification
        elif key in FROM_RUNTIME or key.startswith(RESERVED):
            yield Fault(
                join(path, key), "set by the runtime", "it does not belong into a configuration"
            )
        else:
            yield from _unknown_within(item.kind, value, join(path, key))


def _unknown_within(kind: Kind, value: Any, path: str) -> Iterator[Fault]:
    if isinstance(kind, Object) and isinstance(value, dict):
        yield from _unknown_keys(kind.config, value, path)
    elif isinstance(kind, ListOf) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_within(kind.item, item, f"{path}[{index}]")
    elif isinstance(kind, MapOf) and isinstance(value, dict):
        for key, item in value.items():
            yield from _unknown_within(kind.item, item, join(path, key))


def _unknown(key: str, where: str, config: type[Config]) -> Fault:
    names = [
        item.key
        for item in _declared(config)
        if item.key not in FROM_RUNTIME and not item.key.startswith(RESERVED)
    ]
    folded = {name.lower(): name for name in names}
    meant = get_close_matches(key.lower(), folded, 1)
    if meant:
        return Fault(where, "unknown key", f'did you mean "{folded[meant[0]]}"?')
    return Fault(where, "unknown key", f"known are {_quoted(names)}")


def _is_list_key(key: str, where: str) -> Fault | None:
    if key in _LIST_ONLY:
        return Fault(where, "not a key of a plugin", "it belongs to the list, beside its name")
    return None


def _capability_faults(
    plugin: Plugin, address_plugin: Plugin | None, own: Mapping[str, Any], path: str
) -> Iterator[Fault]:
    declared = lookup(own, "capabilities")
    if not isinstance(declared, dict):
        return
    # An address plugin's capabilities are declared by the plugin that asks it.
    taken = capabilities(plugin) | (capabilities(address_plugin) if address_plugin else set())
    for name in declared:
        if name in taken or name in CAPABILITIES:
            continue
        meant = get_close_matches(name, taken | CAPABILITIES, 1)
        hint = f'did you mean "{meant[0]}"?' if meant else f"known are {_quoted(sorted(taken))}"
        yield Fault(join(path, f"capabilities.{name}"), "unknown capability", hint)


def capabilities(plugin: Plugin) -> set[str]:
    """The capabilities that a plugin of pycni's takes: the keys of its runtimeConfig."""
    for item in _declared(plugin.config):
        if item.key == "runtimeConfig" and isinstance(item.kind, Object):
            return {inner.key for inner in _declared(item.kind.config)}
    return set()


def _address_plugin(own: Mapping[str, Any]) -> Plugin | None:
    """The address plugin that a configuration names, if it is one of pycni's."""
    kind = ipam_type(lookup(own, "ipam"))
    if kind in NAMES and _declares_ipam(load(kind).config):
        return load(kind)
    return None


def _declares_ipam(config: type[NetConf]) -> bool:
    """Whether this is an address plugin's: only those declare what is in `ipam`."""
    return any(
        item.key == "ipam" and not isinstance(item.kind, Anything) for item in _declared(config)
    )


def _declared(config: type[Config]) -> Iterable[Field]:
    return config.declared.values()


def _within(path: str, fault: Fault, document: Mapping[str, Any]) -> Fault:
    """A fault of a part, as one of the whole. One without a key is placed at the key it names."""
    inner = fault.path or _spoken_of(fault, document)
    return Fault(join(path, inner), fault.problem, fault.expected)


def _spoken_of(fault: Fault, document: Mapping[str, Any]) -> str:
    """The path of the key that a message has in quotes; of several, the one with the value that
    it has as well. "" if that is not clear."""
    for name in re.findall(r'"([A-Za-z]+)"', f"{fault.problem} {fault.expected}"):
        found = list(_paths(document, name, ""))
        if len(found) > 1:
            found = [(path, value) for path, value in found if str(value) in fault.problem]
        if len(found) == 1:
            return found[0][0]
    return ""


def _paths(value: Any, name: str, path: str) -> Iterator[tuple[str, Any]]:
    """Every place below a value where a key is, with what it holds."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == name:
                yield join(path, key), item
            yield from _paths(item, name, join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, name, f"{path}[{index}]")


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
