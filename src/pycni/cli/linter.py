"""Finding all that is wrong with a network configuration, for `pycni lint`.

What can be known without the host: JSON, the rules of the specification, each known plugin's keys
and the rules between them, from the classes in which the plugins declare their configuration. Of a
plugin that is not ours only the specification's part is judged, and that there is one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pycni.cli.lint_together import plugin_faults
from pycni.plugins import NAMES, load
from pycni.runtime.config import (
    LIST_KEYS,
    content,
    files,
    negotiate,
    parse_part,
    read_network,
    read_plugin,
)
from pycni.runtime.errors import ConfigError, FaultInFile
from pycni.runtime.json_positions import Positions, positions
from pycni.sdk.chained import ChainedPlugin
from pycni.sdk.interface import InterfacePlugin
from pycni.sdk.plugin import Plugin
from pycni.spec import versions
from pycni.spec.config import NetConf, ipam_type
from pycni.spec.jsontext import JSONError, loads, lookup
from pycni.spec.names import is_name
from pycni.spec.schema import Anything, Config, Fault, Kind, ListOf, MapOf, Object, describe

EXTENSIONS = (".conflist", ".conf", ".json")

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
_FROM_RUNTIME = ("prevResult", "runtimeConfig")
_RESERVED = "cni.dev/"


def lint_file(path: str, others: Collection[str] = OTHERS) -> list[FaultInFile]:
    """All faults of a file, in the order of its lines. Raises nothing for what is in the file.

    others: the types of plugins that there are besides ours.
    """
    try:
        text = content(path).decode("utf-8", "replace")
    except OSError as error:
        return [FaultInFile("", f"cannot be read: {error.strerror}", "", path)]
    is_list = path.endswith(".conflist")
    told: tuple[FaultInFile, ...] = ()
    try:
        (read_network if is_list else read_plugin)(path)
    except ConfigError as error:
        told = error.faults
    try:
        document = loads(text)
    except JSONError:
        return list(told)
    if not isinstance(document, dict) or (not is_list and "plugins" in document):
        return list(told)  # of the wrong kind as a whole
    where = positions(text)
    faults: list[Fault] = [fault for fault in told if fault.file == path]
    look = _lint_list if is_list else _lint_single
    told_at = {fault.path for fault in faults if fault.path}
    faults += (fault for fault in look(document, others) if fault.path not in told_at)
    faults += _repeated(where)
    beside = _lint_beside(document, path, others) if is_list else ()
    return [*_placed(faults, where, path), *beside]


def _lint_beside(
    document: Mapping[str, Any], path: str, others: Collection[str]
) -> Iterator[FaultInFile]:
    """The faults of the plugins that stand in files beside a list."""
    name, inlined = document.get("name"), document.get("plugins")
    if not (isinstance(name, str) and is_name(name)):
        return
    if str(document.get("loadOnlyInlinedPlugins")).lower() == "true":
        return
    first = len(inlined) if isinstance(inlined, list) else 0
    inherited = {key: document[key] for key in ("name", "cniVersion") if key in document}
    for index, file in enumerate(files(os.path.join(os.path.dirname(path), name), (".conf",))):
        text = content(file).decode("utf-8", "replace")
        told: tuple[FaultInFile, ...] = ()
        try:
            parse_part(text, file)
        except ConfigError as error:
            told = error.faults
        try:
            plugin = loads(text)
        except JSONError:
            yield from told
            continue
        faults: list[Fault] = [*told]
        if isinstance(plugin, dict):
            faults += _lint_plugin({**plugin, **inherited}, plugin, "", first + index, others)
        where = positions(text)
        yield from _placed(faults + _repeated(where), where, file)


def _lint_list(document: Mapping[str, Any], others: Collection[str]) -> Iterator[Fault]:
    """What is wrong with a list beyond what keeps a runtime from reading it."""
    yield from _version_faults(document)
    plugin_keys = {declared.key for name in NAMES for declared in _declared(load(name).config)}
    for key in document:
        if key in LIST_KEYS or key == "plugins" or key.startswith(_RESERVED):
            continue
        meant = get_close_matches(key, [*LIST_KEYS, "plugins"], 1)
        if meant:
            yield Fault(key, "unknown key", f'did you mean "{meant[0]}"?')
        elif key in plugin_keys or key in _FROM_RUNTIME:
            yield Fault(key, "not a key of the list", 'it belongs to one of the "plugins"')
        # Runtimes keep notes of their own there, such as nerdctl's "nerdctlID".
    plugins = document.get("plugins")
    if not isinstance(plugins, list):
        return
    inherited = {key: document[key] for key in ("name", "cniVersion") if key in document}
    for index, plugin in enumerate(plugins):
        if isinstance(plugin, dict):
            whole, path = {**plugin, **inherited}, f"plugins[{index}]"
            yield from _lint_plugin(whole, plugin, path, index, others)


def _lint_single(document: Mapping[str, Any], others: Collection[str]) -> Iterator[Fault]:
    """What is wrong with a single plugin's configuration."""
    yield from _version_faults(document)
    yield from _lint_plugin(document, document, "", 0, others)


def _lint_plugin(
    document: Mapping[str, Any],
    own: Mapping[str, Any],
    path: str,
    index: int,
    others: Collection[str],
) -> Iterator[Fault]:
    """document: as the plugin will get it; own: as it stands in the file."""
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
    yield from plugin_faults(own, path)
    if index == 0 and isinstance(plugin, ChainedPlugin):
        yield Fault(
            _join(path, "type"),
            f"{kind} cannot come first",
            "it works on the interface that a plugin before it has made",
        )
    ipam = lookup(own, "ipam")
    if isinstance(plugin, InterfacePlugin) and plugin.needs_ipam and not ipam_type(ipam):
        yield Fault(
            _join(path, "ipam"), "missing", f"{kind} needs addresses: host-local, static or dhcp"
        )
    if ipam is not None and not isinstance(ipam, dict):
        yield Fault(_join(path, "ipam"), f"{describe(ipam)} is not valid", "expected an object")
    elif ipam:
        yield from _lint_ipam(address_plugin, ipam, document, _join(path, "ipam"), others)


def _unknown_plugin(
    kind: str, known: Sequence[str], others: Collection[str], path: str
) -> Iterator[Fault]:
    """What to say of a type that is none of ours."""
    if kind in others:
        return
    meant = get_close_matches(kind, known, 1, 0.75)
    yield Fault(
        _join(path, "type"),
        f'no plugin "{kind}"',
        f'did you mean "{meant[0]}"?' if meant else "--plugin-dir tells where those of others are",
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
        yield Fault(_join(path, "type"), "missing", "expected the address plugin's name")
        return
    if not isinstance(kind, str):
        yield Fault(_join(path, "type"), f"{describe(kind)} is not valid", "expected a string")
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


_SHARED_KEYS = ("name", "cniversion", "type")


def _unknown_keys(
    config: type[Config],
    document: Mapping[str, Any],
    path: str,
    special: Any = None,
) -> Iterator[Fault]:
    declared = {item.key.lower(): item for item in _declared(config)}
    for key, value in document.items():
        item = declared.get(key.lower())
        if item is None:
            where = _join(path, key)
            yield (special and special(key, where)) or _unknown(key, where, config)
        elif key == "args":
            continue  # free by the specification
        elif key in _FROM_RUNTIME or key.startswith(_RESERVED):
            yield Fault(
                _join(path, key), "set by the runtime", "it does not belong into a configuration"
            )
        else:
            yield from _unknown_within(item.kind, value, _join(path, key))


def _unknown_within(kind: Kind, value: Any, path: str) -> Iterator[Fault]:
    if isinstance(kind, Object) and isinstance(value, dict):
        yield from _unknown_keys(kind.config, value, path)
    elif isinstance(kind, ListOf) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_within(kind.item, item, f"{path}[{index}]")
    elif isinstance(kind, MapOf) and isinstance(value, dict):
        for key, item in value.items():
            yield from _unknown_within(kind.item, item, _join(path, key))


def _unknown(key: str, where: str, config: type[Config]) -> Fault:
    names = [
        item.key
        for item in _declared(config)
        if item.key not in _FROM_RUNTIME and not item.key.startswith(_RESERVED)
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
    taken = _capabilities(plugin) | (_capabilities(address_plugin) if address_plugin else set())
    for name in declared:
        if name in taken or name in CAPABILITIES:
            continue
        meant = get_close_matches(name, taken | CAPABILITIES, 1)
        hint = f'did you mean "{meant[0]}"?' if meant else f"known are {_quoted(sorted(taken))}"
        yield Fault(_join(path, f"capabilities.{name}"), "unknown capability", hint)


def _capabilities(plugin: Plugin) -> set[str]:
    """What a plugin takes from the runtime: the keys of its runtimeConfig."""
    for item in _declared(plugin.config):
        if item.key == "runtimeConfig" and isinstance(item.kind, Object):
            return {inner.key for inner in _declared(item.kind.config)}
    return set()


def capabilities(plugin: Plugin) -> list[str]:
    """The capabilities that a plugin of ours takes."""
    return sorted(_capabilities(plugin))


def _version_faults(document: Mapping[str, Any]) -> Iterator[Fault]:
    version = document.get("cniVersion")
    offered = document.get("cniVersions")
    if isinstance(offered, list) and all(isinstance(item, str) for item in offered):
        ignored: list[Fault] = []
        version = negotiate(version if isinstance(version, str) else "", offered, ignored)
        if ignored:
            return  # told by whoever read the list
    if isinstance(version, str) and version and version not in versions.ALL:
        yield Fault(
            "cniVersion",
            f"{describe(version)} is no version of the specification",
            f"known are {', '.join(versions.ALL)}",
        )


def _address_plugin(own: Mapping[str, Any]) -> Plugin | None:
    """The address plugin that a configuration names, if it is one of ours."""
    kind = ipam_type(lookup(own, "ipam"))
    if kind in NAMES and _declares_ipam(load(kind).config):
        return load(kind)
    return None


def _declares_ipam(config: type[NetConf]) -> bool:
    """Whether this is an address plugin's: only those declare what is in `ipam`."""
    return any(
        item.key == "ipam" and not isinstance(item.kind, Anything) for item in _declared(config)
    )


def _declared(config: type[Config]) -> Iterator[Any]:
    return iter(config.declared.values())


def _within(path: str, fault: Fault, document: Mapping[str, Any]) -> Fault:
    """A fault of a part, as one of the whole. One without a key is told at the key it speaks of."""
    inner = fault.path or _spoken_of(fault, document)
    return Fault(_join(path, inner), fault.problem, fault.expected)


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
                yield _join(path, key), item
            yield from _paths(item, name, _join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, name, f"{path}[{index}]")


def _join(path: str, key: str) -> str:
    if not path or not key or key.startswith("["):
        return path + key
    return f"{path}.{key}"


def _repeated(where: Positions) -> list[Fault]:
    return [
        FaultInFile(path, "given twice", "the last one counts; drop the other", line=line)
        for path, line in where.repeated.items()
    ]


def _placed(faults: list[Fault], where: Positions, path: str) -> list[FaultInFile]:
    """The faults with their lines, each told once, in the order of the lines."""
    placed: dict[tuple[str, str], FaultInFile] = {}
    for fault in faults:
        line = getattr(fault, "line", 0) or where.line(fault.path)
        found = FaultInFile(fault.path, fault.problem, fault.expected, path, line)
        placed.setdefault((fault.path, fault.problem), found)
    return sorted(placed.values(), key=lambda fault: fault.line)


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def config_files(path: str) -> list[str]:
    """A file itself, or the files of a directory that runtimes would read."""
    if not os.path.isdir(path):
        return [path]
    return sorted(entry.path for entry in os.scandir(path) if entry.name.endswith(EXTENSIONS))
