"""Network configurations: reading a list of plugins, or a single one, from JSON.

Everything wrong with a document is found at once and reported with its key and line. What a
plugin's own keys mean is the plugin's to judge, except for `type` and `capabilities`, which the
runtime needs itself. The rules are those of SPEC 1.1.0, "Network configuration format".
"""

from __future__ import annotations

import errno
import os

from pycni.runtime.errors import ConfigError, FaultInFile
from pycni.runtime.json_positions import positions
from pycni.spec import versions
from pycni.spec.errors import CNIError
from pycni.spec.jsontext import MAX_SIZE, JSONError, dumps, loads, lookup
from pycni.spec.names import check_plugin_type, is_name
from pycni.spec.record import Record
from pycni.spec.schema import MAX_FAULTS, Fault, Flag, Kind, ListOf, MapOf, Text, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_AN_OBJECT = "expected one JSON object"
_A_NAME = "a letter or digit, then letters, digits, '_', '.' or '-'"


class PluginConfig(Record):
    """One plugin of a network: its configuration as it stands in the list."""

    document: Mapping[str, Any]

    @property
    def type(self) -> str:
        """The plugin: the name of its executable."""
        return str(lookup(self.document, "type"))

    @property
    def name(self) -> str:
        """A name of the plugin's own, which lists may give to distinguish two of one type."""
        name = lookup(self.document, "name")
        return name if isinstance(name, str) else ""

    @property
    def capabilities(self) -> frozenset[str]:
        """The settings by which the runtime may adjust this plugin: those declared true."""
        declared = lookup(self.document, "capabilities") or {}
        return frozenset(name for name, wanted in declared.items() if wanted)


class NetworkConfig(Record):
    """A network: its plugins in order.

    version: of the specification, "" if the document has none, which means 0.1.0; source: the
    document as it was read, with what stands beside it, which the cache keeps; file: where it was
    read from, "" for nowhere; beside: which of the plugins stand in the directory beside that.
    """

    name: str
    version: str
    plugins: tuple[PluginConfig, ...]
    disable_check: bool = False
    disable_gc: bool = False
    source: bytes = b""
    file: str = ""
    beside: tuple[PluginConfig, ...] = ()

    def at_least(self, minimum: str) -> bool:
        """Whether the network's version is `minimum` or newer; what is no version is not."""
        try:
            return versions.at_least(self.version, minimum)
        except ValueError:
            return False


class Flagged(Kind):
    """true or false, or either as a string, as 0.4.0 had it."""

    expected = "true or false"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        self.wrong(value, path, faults)
        return False

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}]}


LIST_KEYS: dict[str, Kind] = {
    "cniVersion": Text(),
    "cniVersions": ListOf(Text()),
    "name": Text(),
    "disableCheck": Flagged(),
    "disableGC": Flagged(),
    "loadOnlyInlinedPlugins": Flagged(),
}


def parse_network(
    data: bytes | str, file: str = "", beside: tuple[PluginConfig, ...] = ()
) -> NetworkConfig:
    """Read a list of plugins. Raises ConfigError.

    beside: plugins of a directory beside it, which follow those of a list that does not say
    loadOnlyInlinedPlugins; they are not looked for, see `read_network`.
    """
    config, only_inlined = _parse_list(data, file)
    if beside and not only_inlined:
        config = _with_plugins(config, beside)
    if not config.plugins:
        raise _error([Fault("plugins", "missing", "expected a list of plugins")], data, file)
    return config


def parse_cached(data: bytes, today: NetworkConfig | None) -> NetworkConfig:
    """The list that the cache has of an attachment. Raises ConfigError.

    today: the network's configuration of now. Runtimes of others note the list as it stands in its
    file, without the plugins beside it.
    """
    return parse_network(data, beside=() if today is None else today.beside)


def read_network(path: str) -> NetworkConfig:
    """Read a .conflist file, and the plugins in the directory beside it that has the network's
    name, unless loadOnlyInlinedPlugins is set. Raises ConfigError.
    """
    data = _read(path, "configuration list")
    config, only_inlined = _parse_list(data, path)
    if only_inlined:
        if not config.plugins:
            fault = Fault(
                "plugins",
                "missing",
                "loadOnlyInlinedPlugins is true, so the plugins must stand in the list itself",
            )
            raise _error([fault], data, path)
        return config
    directory = os.path.join(os.path.dirname(path), config.name)
    beside = tuple(
        parse_part(_read(name, "plugin configuration"), name) for name in _files_beside(directory)
    )
    if not config.plugins and not beside:
        fault = Fault(
            "plugins", "missing", f"expected a list of plugins, or .conf files in {directory}"
        )
        raise _error([fault], data, path)
    return _with_plugins(config, beside) if beside else config


def _files_beside(directory: str) -> list[str]:
    try:
        return files(directory, (".conf",))
    except OSError as error:
        raise _unreadable(
            directory, error, "a directory of plugins", "configuration list"
        ) from None


def _with_plugins(config: NetworkConfig, beside: tuple[PluginConfig, ...]) -> NetworkConfig:
    """A list with more plugins; they stand in its source as well, for what is done by that later:
    by then the directory may hold others."""
    document = loads(config.source)
    plugins = config.plugins + beside
    document["plugins"] = [plugin.document for plugin in plugins]
    document["loadOnlyInlinedPlugins"] = True
    source = dumps(document, sort_keys=True).encode()
    return config.replace(plugins=plugins, source=source, beside=beside)


def read_plugin(path: str) -> NetworkConfig:
    """Read a .conf or .json file, one plugin, as a list of one. Raises ConfigError."""
    return parse_plugin(_read(path, "configuration"), path)


def parse_plugin(data: bytes | str, file: str = "") -> NetworkConfig:
    """Read the configuration of one plugin as a list of one. Raises ConfigError."""
    plugin = parse_part(data, file)
    faults: list[Fault] = []
    name = _text(plugin.document, "name", faults)
    version = _text(plugin.document, "cniVersion", faults)
    _check_name(name, faults)
    if faults:
        raise _error(faults, data, file, "configuration")
    # As the reference's library writes the list that it makes of it, which the cache then keeps.
    source = dumps(
        {"name": name, "cniVersion": version, "plugins": [plugin.document]}, sort_keys=True
    )
    return NetworkConfig(name, version, (plugin,), source=source.encode(), file=file)


def from_document(document: Mapping[str, Any]) -> NetworkConfig:
    """A network from a JSON object: a list if it has `plugins`, else one plugin.

    Raises ConfigError.
    """
    try:
        text = dumps(document)
    except (TypeError, ValueError) as error:
        raise ConfigError([FaultInFile("", str(error), "expected what JSON can say")]) from None
    return parse_plugin(text) if "plugins" not in document else parse_network(text)


def files(directory: str, extensions: Sequence[str]) -> list[str]:
    """The paths of a directory's files with these extensions, sorted; none if there is no such
    directory. Raises OSError for one that cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            return sorted(
                entry.path
                for entry in entries
                # What leads nowhere is a faulty file.
                if entry.name.endswith(tuple(extensions)) and not os.path.isdir(entry.path)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # nor can there be one
            return []
        raise


def negotiate(cni_version: str, cni_versions: Sequence[str], faults: list[Fault]) -> str:
    """The version to use of a list that offers several: the newest that this side knows.

    A list that offers one only is taken at its word, so that its plugins judge it.
    """
    known = {versions.parse(version): version for version in versions.ALL}
    offered = []
    for index, version in enumerate(cni_versions):
        try:
            offered.append(versions.parse(version))
        except ValueError as error:
            faults.append(Fault(f"cniVersions[{index}]", str(error), _known_versions()))
    if not cni_versions:
        return cni_version
    if cni_version:
        try:
            offered.append(versions.parse(cni_version))
        except ValueError as error:
            faults.append(Fault("cniVersion", str(error), _known_versions()))
    usable = [version for version in offered if version in known]
    if usable:
        return known[max(usable)]
    if offered and not faults:
        faults.append(Fault("cniVersions", "none of these is known here", _known_versions()))
    return cni_version


def _known_versions() -> str:
    return f"known are {', '.join(versions.ALL)}"


def _parse_list(data: bytes | str, file: str) -> tuple[NetworkConfig, bool]:
    document = _load(data, file, "configuration list")
    faults: list[Fault] = []
    values = {
        key: kind.decode(document[key], key, faults)
        for key, kind in LIST_KEYS.items()
        if key in document
    }
    name = values.get("name", "")
    if "name" not in document or isinstance(document["name"], str):
        _check_name(name, faults)
    offered = values.get("cniVersions", ()) if not faults else ()
    version = negotiate(values.get("cniVersion", ""), offered, faults)
    plugins = _plugins(document, faults)
    if faults:
        raise _error(faults, data, file)
    config = NetworkConfig(
        name,
        version,
        plugins,
        values.get("disableCheck", False),
        values.get("disableGC", False),
        data if isinstance(data, bytes) else data.encode(),
        file,
    )
    return config, values.get("loadOnlyInlinedPlugins", False)


def _plugins(document: Mapping[str, Any], faults: list[Fault]) -> tuple[PluginConfig, ...]:
    if "plugins" not in document:
        if "type" in document:
            faults.append(
                Fault(
                    "plugins",
                    "missing",
                    'this is one plugin, not a list: put it into "plugins": [...], or name the '
                    "file .conf",
                )
            )
        return ()
    listed = document["plugins"]
    if not isinstance(listed, list) or not listed:
        problem = "is empty" if listed == [] else f"{describe(listed)} is not valid"
        faults.append(Fault("plugins", problem, "expected a list of plugins"))
        return ()
    for index, plugin in enumerate(listed):
        if len(faults) >= MAX_FAULTS:
            break
        _check_plugin(plugin, f"plugins[{index}]", faults)
    return tuple(PluginConfig(plugin) for plugin in listed)


def parse_part(data: bytes | str, file: str) -> PluginConfig:
    """Read one plugin's configuration, which may lack what its list has. Raises ConfigError."""
    document = _load(data, file, "configuration")
    faults: list[Fault] = []
    if "plugins" in document and "type" not in document:
        faults.append(
            Fault("type", "missing", "this is a list of plugins: name its file .conflist")
        )
    else:
        _check_plugin(document, "", faults)
    if faults:
        raise _error(faults, data, file, "configuration")
    return PluginConfig(document)


def _check_plugin(plugin: Any, path: str, faults: list[Fault]) -> None:
    """Whether the runtime can work with a plugin's configuration."""
    if not isinstance(plugin, dict):
        faults.append(Fault(path, f"{describe(plugin)} is not valid", "expected an object"))
        return
    within = f"{path}." if path else ""
    kind = lookup(plugin, "type")
    if not kind or not isinstance(kind, str):
        problem = "missing" if not kind else f"{describe(kind)} is not valid"
        faults.append(Fault(f"{within}type", problem, "expected the name of a plugin"))
    else:
        try:
            check_plugin_type(kind)
        except CNIError as error:
            faults.append(Fault(f"{within}type", error.message, error.details))
    capabilities = lookup(plugin, "capabilities")
    if capabilities is not None:
        MapOf(Flag()).decode(capabilities, f"{within}capabilities", faults)


def _check_name(name: str, faults: list[Fault]) -> None:
    if not name:
        faults.append(Fault("name", "missing", f"expected the network's name: {_A_NAME}"))
    elif not is_name(name):
        faults.append(Fault("name", f"{describe(name)} is not valid", f"expected {_A_NAME}"))


def _text(document: Mapping[str, Any], key: str, faults: list[Fault]) -> str:
    value = lookup(document, key)
    return "" if value is None else Text().decode(value, key, faults)


def content(path: str) -> bytes:
    """What a configuration file holds, as far as it would be read. Raises OSError."""
    # O_NONBLOCK: a FIFO without a writer must not hide every network behind it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        return file.read(MAX_SIZE + 1) or b""  # None of a FIFO that says nothing


def _read(path: str, what: str) -> bytes:
    try:
        return content(path)
    except OSError as error:
        raise _unreadable(path, error, "a readable file", what) from None


def _unreadable(path: str, error: OSError, expected: str, what: str) -> ConfigError:
    reason = error.strerror or str(error)
    fault = FaultInFile("", f"cannot be read: {reason}", f"expected {expected}", path)
    return ConfigError([fault], what)


def _load(data: bytes | str, file: str, what: str) -> dict[str, Any]:
    try:
        document = loads(data)
    except JSONError as error:
        problem = error.problem if file else str(error)
        line = error.line if file else 0
        raise ConfigError([FaultInFile("", problem, _AN_OBJECT, file, line)], what) from None
    if not isinstance(document, dict):
        problem = f"{describe(document)} is not valid"
        raise ConfigError([FaultInFile("", problem, _AN_OBJECT, file, 1 if file else 0)], what)
    return document


def _error(
    faults: Sequence[Fault], data: bytes | str, file: str, what: str = "configuration list"
) -> ConfigError:
    text = data if isinstance(data, str) else str(data, "utf-8", "replace")
    where = positions(text)
    return ConfigError(
        [
            # Without a file, the caller has an object and no lines.
            FaultInFile(
                fault.path,
                fault.problem,
                fault.expected,
                file,
                where.line(fault.path) if file else 0,
            )
            for fault in faults
        ],
        what,
    )
