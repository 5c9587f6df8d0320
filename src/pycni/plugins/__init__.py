"""The plugins, one module each, named as the plugin (`host-local` is host_local).

Each module ends in its `plugin` object. Nothing here is imported until it is asked for.
"""

from __future__ import annotations

import gc
import posix

from pycni.bundle import module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from pycni.sdk.plugin import Plugin

NAMES = (
    "bandwidth",
    "bridge",
    "debug",
    "dhcp",
    "dummy",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "noop",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
)

# With the plugin's name, the last line of an executable that `pycni install` wrote.
MARK = b"# pycni plugin: "


def load(name: str) -> Plugin:
    """The plugin of a name. Raises KeyError for a name that is not ours."""
    if name not in NAMES:
        raise KeyError(name)
    plugin: Plugin = module(f"{__name__}.{name.replace('-', '_')}").plugin
    return plugin


def resolve(path: str) -> Plugin | None:
    """The plugin behind an executable that `pycni install` wrote; None for any other."""
    name = path.rpartition("/")[2]
    if name not in NAMES or name == path:  # a mere name is no path: it would be one of any folder
        return None
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return None
    line = MARK + name.encode() + b"\n"
    try:
        end = posix.fstat(descriptor).st_size
        tail = posix.pread(descriptor, len(line), max(0, end - len(line)))
    finally:
        posix.close(descriptor)
    return load(name) if tail == line else None


def run(name: str) -> NoReturn:
    """Serve one call as the process of a plugin's executable, and end it."""
    gc.disable()  # it would look through what is being loaded, for garbage there is not
    from pycni.sdk.entry import main

    main(load(name), resolve)
