"""The keys that a plugin declares as a Markdown table: what docs/plugins shows.

A row for each key, and for each key of the objects in it: `ipam.ranges[][].subnet`. The keys that
the specification gives all plugins have a table of their own (`NETWORK_KEYS`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycni.plugins import load
from pycni.sdk.interface import InterfacePlugin
from pycni.spec.config import NetConf
from pycni.spec.schema import (
    CIDR,
    Address,
    Anything,
    Config,
    Field,
    Flag,
    Integer,
    Kind,
    ListOf,
    MACAddress,
    MapOf,
    Object,
    Text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NETWORK_KEYS = "network"  # in the place of a plugin's name
HEADER = "| Key | Kind | Default | Meaning |\n| --- | --- | --- | --- |\n"
_LAST = ("ipam", "dns", "args", "runtimeConfig")
_LARGE = 1 << 30  # a bound that only says how wide the number is
_WORDS: tuple[tuple[type[Kind], str], ...] = (
    (Anything, "object"),  # what the specification leaves to others: args, ipam, prevResult
    (Text, "text"),
    (Flag, "boolean"),
    (Address, "address"),
    (CIDR, "network"),
    (MACAddress, "MAC address"),
    (Object, "object"),
)


def key_table(name: str) -> str:
    """The table of a plugin's keys, as Markdown. Raises KeyError for a name that is no plugin's."""
    if name == NETWORK_KEYS:
        declared = list(NetConf.declared.values())
    else:
        declared = _own_keys(name)
    rows = "".join(f"| {' | '.join(row)} |\n" for row in _rows(declared, "", []))
    return HEADER + rows if rows else "None of its own.\n"


def _own_keys(name: str) -> list[Field]:
    """The keys that a plugin declares, and those for addresses if it makes interfaces."""
    plugin = load(name)
    common = NetConf.declared
    own = [found for key, found in plugin.config.declared.items() if found is not common.get(key)]
    if isinstance(plugin, InterfacePlugin):
        for key in ("ipam", "dns"):
            found = plugin.config.declared[key]
            if found not in own:
                required = key == "ipam" and plugin.needs_ipam
                own.append(
                    Field(key, found.kind, None, required, found.doc, found.default_doc),
                )
    return sorted(own, key=lambda found: _LAST.index(found.key) if found.key in _LAST else -1)


def _rows(
    declared: Iterable[Field], prefix: str, listed: list[Field]
) -> Iterator[tuple[str, str, str, str]]:
    for found in declared:
        path = prefix + found.key
        within, suffix = _object_in(found.kind)
        keys = [] if within is None else list(within.declared.values())
        listed.append(found)
        meaning = found.doc
        known = len(keys) > 1 and all(key in listed for key in keys)
        if known:
            meaning += f"; with {', '.join(f'`{key.key}`' for key in keys)} as above"
        if known or not isinstance(found.kind, Object) or not _is_section(path, keys):
            yield f"`{path}`", _kind(found.kind), _default(found), meaning.replace("|", "\\|")
        if keys and not known and found.kind is not NetConf.declared["dns"].kind:
            yield from _rows(keys, f"{path}{suffix}.", listed)


def _is_section(path: str, keys: list[Field]) -> bool:
    """Whether an object merely groups keys, so that its rows say all."""
    return bool(keys) and path in ("ipam", "args", "args.cni", "runtimeConfig")


def _object_in(kind: Kind) -> tuple[type[Config] | None, str]:
    """The object that a kind leads to, through lists and maps, and how a path says so."""
    suffix = ""
    while isinstance(kind, ListOf | MapOf):
        suffix += "[]" if isinstance(kind, ListOf) else ".*"
        kind = kind.item
    return (kind.config if isinstance(kind, Object) else None), suffix


def _kind(kind: Kind) -> str:
    if isinstance(kind, ListOf):
        return f"list of {_plural(_kind(kind.item))}"
    if isinstance(kind, MapOf):
        return "object" if isinstance(kind.item, Anything) else f"{_kind(kind.item)} by key"
    if isinstance(kind, Text) and kind.choices:
        return " or ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, Integer):
        large = kind.maximum >= _LARGE or kind.minimum < 0
        return "number" if large else f"{kind.minimum} to {kind.maximum}"
    for known, word in _WORDS:
        if isinstance(kind, known):
            return word
    return type(kind).__name__.lower()


def _plural(word: str) -> str:
    if word.startswith("list of "):
        return f"lists of {word[8:]}"
    return word + ("es" if word.endswith("s") else "s")


def _default(found: Field) -> str:
    if found.required:
        return "required"
    if found.default_doc:
        return found.default_doc
    if isinstance(found.default, bool):
        return "true" if found.default else "false"
    if isinstance(found.default, int):
        return str(found.default)
    return f"`{found.default}`" if found.default and isinstance(found.default, str) else "none"
