"""What is wrong with one file: JSON, the specification's rules, and each of its plugins."""

from __future__ import annotations

import os
from difflib import get_close_matches

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
from pycni.runtime.json_positions import positions
from pycni.runtime.lint.plugin import FROM_RUNTIME, OTHERS, RESERVED, plugin_faults
from pycni.spec import versions
from pycni.spec.jsontext import JSONError, loads
from pycni.spec.names import is_name
from pycni.spec.schema import Fault, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from typing import Any

    from pycni.runtime.json_positions import Positions


def lint_file(path: str, others: Collection[str] = OTHERS) -> list[FaultInFile]:
    """All faults of a file, in the order of its lines. Raises nothing for what is in the file.

    others: the types of plugins that there are besides ours.
    """
    try:
        text = content(path).decode("utf-8", "replace")
    except OSError as error:
        return [FaultInFile("", f"cannot be read: {error.strerror}", "", path)]
    is_list = path.endswith(".conflist")
    known: tuple[FaultInFile, ...] = ()
    try:
        (read_network if is_list else read_plugin)(path)
    except ConfigError as error:
        known = error.faults
    try:
        document = loads(text)
    except JSONError:
        return list(known)
    if not isinstance(document, dict) or (not is_list and "plugins" in document):
        return list(known)  # of the wrong kind as a whole
    where = positions(text)
    faults: list[Fault] = [fault for fault in known if fault.file == path]
    look = _lint_list if is_list else _lint_single
    known_at = {fault.path for fault in faults if fault.path}
    faults += (fault for fault in look(document, others) if fault.path not in known_at)
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
        known: tuple[FaultInFile, ...] = ()
        try:
            parse_part(text, file)
        except ConfigError as error:
            known = error.faults
        try:
            plugin = loads(text)
        except JSONError:
            yield from known
            continue
        faults: list[Fault] = [*known]
        if isinstance(plugin, dict):
            faults += plugin_faults({**plugin, **inherited}, plugin, "", first + index, others)
        where = positions(text)
        yield from _placed(faults + _repeated(where), where, file)


def _lint_list(document: Mapping[str, Any], others: Collection[str]) -> Iterator[Fault]:
    """What is wrong with a list beyond what keeps a runtime from reading it."""
    yield from _version_faults(document)
    plugin_keys = {
        declared.key for name in NAMES for declared in load(name).config.declared.values()
    }
    for key in document:
        if key in LIST_KEYS or key == "plugins" or key.startswith(RESERVED):
            continue
        meant = get_close_matches(key, [*LIST_KEYS, "plugins"], 1)
        if meant:
            yield Fault(key, "unknown key", f'did you mean "{meant[0]}"?')
        elif key in plugin_keys or key in FROM_RUNTIME:
            yield Fault(key, "not a key of the list", 'it belongs to one of the "plugins"')
        # Runtimes keep notes of their own there, such as nerdctl's "nerdctlID".
    plugins = document.get("plugins")
    if not isinstance(plugins, list):
        return
    inherited = {key: document[key] for key in ("name", "cniVersion") if key in document}
    for index, plugin in enumerate(plugins):
        if isinstance(plugin, dict):
            whole, path = {**plugin, **inherited}, f"plugins[{index}]"
            yield from plugin_faults(whole, plugin, path, index, others)


def _lint_single(document: Mapping[str, Any], others: Collection[str]) -> Iterator[Fault]:
    """What is wrong with a single plugin's configuration."""
    yield from _version_faults(document)
    yield from plugin_faults(document, document, "", 0, others)


def _version_faults(document: Mapping[str, Any]) -> Iterator[Fault]:
    version = document.get("cniVersion")
    offered = document.get("cniVersions")
    if isinstance(offered, list) and all(isinstance(item, str) for item in offered):
        ignored: list[Fault] = []
        version = negotiate(version if isinstance(version, str) else "", offered, ignored)
        if ignored:
            return  # reported by what read the list
    if isinstance(version, str) and version and version not in versions.ALL:
        yield Fault(
            "cniVersion",
            f"{describe(version)} is no version of the specification",
            f"known are {', '.join(versions.ALL)}",
        )


def _repeated(where: Positions) -> list[Fault]:
    return [
        FaultInFile(path, "given twice", "the last one counts; drop the other", line=line)
        for path, line in where.repeated.items()
    ]


def _placed(faults: list[Fault], where: Positions, path: str) -> list[FaultInFile]:
    """The faults with their lines, each once, in the order of the lines."""
    placed: dict[tuple[str, str], FaultInFile] = {}
    for fault in faults:
        line = getattr(fault, "line", 0) or where.line(fault.path)
        found = FaultInFile(fault.path, fault.problem, fault.expected, path, line)
        placed.setdefault((fault.path, fault.problem), found)
    return sorted(placed.values(), key=lambda fault: fault.line)
