"""Finding a network by its name in the directories of configurations.

In a directory, lists (.conflist) come before single plugins (.conf, .json), each in the order of
their names, and the first with the wanted name is it. A file that cannot be used does not hide the
others: it is reported, and only an error if it is the wanted network itself.
"""

from __future__ import annotations

import os

from pycni.runtime.config import NetworkConfig, content, files, read_network, read_plugin
from pycni.runtime.errors import ConfigError, FaultInFile, NetworkNotFound
from pycni.spec.jsontext import JSONError, loads, lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEFAULT_DIRECTORY = "/etc/cni/net.d"
EXTENSIONS = (".conflist", ".conf", ".json")  # of configurations
_SHOWN = 3  # faults of files in the way of a network


def directories(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Directories given as one path, several joined by ':', or a sequence."""
    if isinstance(given, str):
        return [path for path in given.split(os.pathsep) if path]
    if isinstance(given, os.PathLike):
        return [os.fspath(given)]
    return [os.fspath(path) for path in given]


def find_network(name: str, where: Sequence[str]) -> tuple[NetworkConfig, tuple[ConfigError, ...]]:
    """The network of a name, and the files before it that could not be used.

    Raises ConfigError if the network's own file cannot be used, NetworkNotFound if there is none.
    """
    skipped: list[ConfigError] = []
    seen = 0
    for path, found in _each(where):
        seen += 1
        if isinstance(found, NetworkConfig):
            if found.name == name:
                return found, tuple(skipped)
        elif _names(path, name):
            raise found
        else:
            skipped.append(found)
    if not seen:
        raise NetworkNotFound.nothing_in(where)
    faults = [fault for error in skipped for fault in error.faults]
    unusable = f"; cannot be used: {', '.join(map(str, faults[:_SHOWN]))}" if faults else ""
    if len(faults) > _SHOWN:
        unusable += f" and {len(faults) - _SHOWN} more; 'pycni lint' shows all"
    raise NetworkNotFound(
        f'no net configuration with name "{name}" in {":".join(where)}',
        f"the files there have {_listed(where) or 'no network that can be used'}{unusable}",
        skipped,
    )


def all_networks(
    where: Sequence[str],
) -> tuple[list[NetworkConfig], list[ConfigError]]:
    """All networks that `find_network` would find, in order, and the files that cannot be used."""
    networks: dict[str, NetworkConfig] = {}
    faulty: list[ConfigError] = []
    for _, found in _each(where):
        if isinstance(found, NetworkConfig):
            networks.setdefault(found.name, found)
        else:
            faulty.append(found)
    return list(networks.values()), faulty


def executables(where: Sequence[str]) -> dict[str, str]:
    """The names and paths of what can be run in directories; of equal names the first counts.

    Raises OSError for a directory that cannot be read.
    """
    found: dict[str, str] = {}
    for directory in where:
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                found.setdefault(name, path)
    return found


def _each(where: Sequence[str]) -> Iterator[tuple[str, NetworkConfig | ConfigError]]:
    for directory in where:
        for extensions, read in (((".conflist",), read_network), ((".conf", ".json"), read_plugin)):
            try:
                paths = files(directory, extensions)
            except OSError as error:
                fault = FaultInFile("", f"cannot be read: {error.strerror}", "", directory)
                yield directory, ConfigError([fault])
                continue
            for path in paths:
                try:
                    yield path, read(path)
                except ConfigError as error:
                    yield path, error


def _names(path: str, name: str) -> bool:
    """Whether a file that cannot be used is nevertheless one of the network of this name."""
    try:
        document = loads(content(path))
    except (OSError, JSONError):
        return False
    return isinstance(document, dict) and lookup(document, "name") == name


def _listed(where: Sequence[str]) -> str:
    return ", ".join(network.name for network in all_networks(where)[0])
