"""Calling one plugin: in this process if it is one of ours, else as a process of its own.

Which plugin has a name is settled by the directories, as everywhere in CNI: the first that has an
executable of this name. If that executable is one that `pycni install` wrote, there is no need to
run it: the plugin object behind it is called instead, with the same request. Result and errors are
the same either way, and so is what the plugin finds in its environment.
"""

from __future__ import annotations

import os

from pycni.runtime.foreign import Foreign, guarded
from pycni.runtime.options import environment
from pycni.sdk.delegate import did_you_mean, find_plugin, process_environ, read_answer
from pycni.sdk.dispatch import internal_error, perform
from pycni.sdk.execute import execute
from pycni.sdk.request import Request
from pycni.spec import versions
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.jsontext import JSONError, dumps, loads
from pycni.spec.names import check_plugin_type
from pycni.spec.record import Record
from pycni.spec.result import FAMILIES, decode_result, encode_result, family_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycni.runtime.options import Options
    from pycni.sdk.plugin import Plugin
    from pycni.spec.result import Result

ENGINES = ("auto", "exec")


class Found(Record):
    """A plugin that can be called. path: of its executable, "" if it has none; plugin: its object,
    None if it is to be run as a process."""

    type: str
    path: str
    plugin: Plugin | None


class Engine:
    """Finds and calls plugins.

    directories: where executables are looked for; none means the plugins that come with pycni, in
    this process. kind: "auto", or "exec" for a process in any case. resolve: plugin objects of the
    caller's own, by type, which need no executable; None for a type that is looked for as usual.
    """

    def __init__(
        self,
        directories: tuple[str, ...] = (),
        kind: str = "auto",
        resolve: Callable[[str], Plugin | None] | None = None,
    ) -> None:
        if kind not in ENGINES:
            raise ValueError(f"no engine {kind!r}: expected 'auto' or 'exec'")
        self.directories = directories
        self.in_process = kind == "auto"
        self._resolve_own = resolve

    def find(self, plugin_type: str) -> Found:
        """The plugin of a type. Raises CNIError if there is none."""
        check_plugin_type(plugin_type)
        if not self.in_process:
            return Found(plugin_type, find_plugin(plugin_type, self.directories), None)
        plugin = self._callers(plugin_type)
        if plugin is not None:
            return Found(plugin_type, "", plugin)
        if self.directories:
            path = find_plugin(plugin_type, self.directories)
            return Found(plugin_type, path, _ours(path))
        plugin = _our_own(plugin_type)
        if plugin is None:
            raise _missing(plugin_type)
        return Found(plugin_type, "", plugin)

    def _callers(self, plugin_type: str) -> Plugin | None:
        """The caller's own plugin of a type, guarded. Raises CNIError if `resolve` fails."""
        if self._resolve_own is None:
            return None
        try:
            plugin = self._resolve_own(plugin_type)
        except Exception as error:
            raise CNIError(
                INVALID_CONFIG,
                f'resolve("{plugin_type}") raised {type(error).__name__}: {error}',
                "expected a plugin object, or None for a type that is looked for as usual",
            ) from error
        return None if plugin is None else guarded(plugin, plugin_type)

    def _resolve(self, name: str) -> Plugin | None:
        """The same for plugins that delegate: `name` is an executable's path, or a type where there
        are no directories. Raises CNIError if such a type is none of pycni's."""
        plugin = self._callers(os.path.basename(name))
        if plugin is not None:
            return plugin
        if self.directories:
            return _ours(name)
        plugin = _our_own(name)
        if plugin is None and os.sep not in name:
            raise _missing(name)
        return plugin

    def call(self, found: Found, request: Request, options: Options) -> Result | None:
        """Have a plugin do an operation; ADD returns its result, of the configuration's version.

        request: what to do; where plugins are and their environment are added here. Raises
        CNIError.
        """
        request = self.with_environment(request, options)
        if found.plugin is not None:
            return _perform(found.plugin, request)
        output = execute(
            found.path,
            process_environ(request),
            dumps(request.document, sort_keys=True).encode(),
            timeout=options.get("timeout"),
            cancel=request.cancel,
        )
        if request.command != "ADD":
            return None
        return in_version(read_answer(output, request.version), request.version)

    def require_sound(self, found: Found) -> None:
        """Raise a CNIError for an object of the caller's that cannot be a plugin."""
        if isinstance(found.plugin, Foreign):
            found.plugin.require_sound()

    def pycnis(self, found: Found) -> Plugin | None:
        """The same as `own`, for plugins that come with pycni only."""
        plugin = self.own(found)
        return None if isinstance(plugin, Foreign) else plugin

    def own(self, found: Found) -> Plugin | None:
        """The object of a plugin that can be had in this process, whatever the engine's kind."""
        if found.plugin is not None or not found.path:
            return found.plugin
        return _ours(found.path)

    def with_environment(self, request: Request, options: Options) -> Request:
        """A request with where plugins are, and their environment."""
        cancel = options.get("cancel")
        request = request.replace(
            path=self.directories,
            environ=environment(options),
            cancel=None if cancel is None else cancel.fileno(),
        )
        return request.replace(resolve=self._resolve) if self.in_process else request

    def versions(self, found: Found, options: Options) -> tuple[str, ...]:
        """The versions of the specification that a plugin speaks. Raises CNIError."""
        if found.plugin is not None:
            return found.plugin.versions
        cancel = options.get("cancel")
        probe = {"cniVersion": versions.CURRENT}
        # Plugins older than the VERSION operation refuse a call that lacks these.
        request = Request(
            "VERSION", probe, netns="dummy", ifname="dummy", path=("dummy",),
            environ=environment(options),
        )  # fmt: skip
        try:
            output = execute(
                found.path,
                process_environ(request),
                dumps(probe).encode(),
                timeout=options.get("timeout"),
                cancel=None if cancel is None else cancel.fileno(),
            )
        except CNIError as error:
            if str(error) == "unknown CNI_COMMAND: VERSION":
                return ("0.1.0",)
            raise
        try:
            return versions.parse_version_reply(loads(output))
        except JSONError as error:
            raise CNIError(INVALID_CONFIG, f"decoding version info: {error}") from None


def _perform(plugin: Plugin, request: Request) -> Result | None:
    try:
        result = perform(plugin, request)
    except CNIError:
        raise
    except Exception as error:
        raise internal_error(error) from error
    # What a version cannot say is lost here too, as it would be between processes.
    return None if result is None else in_version(result, request.version)


def in_version(result: Result, version: str) -> Result:
    """A result as it reads in a version; the specification has plugins answer in the version of
    their configuration, but some answer in another, which the next plugin would refuse."""
    if result.cni_version == version:
        return result
    if family_of(version) is FAMILIES[-1]:  # these can say everything
        return result.replace(cni_version=version)
    return decode_result(encode_result(result, version), version)


def _ours(path: str) -> Plugin | None:
    from pycni.plugins import resolve

    return resolve(path)


def _our_own(plugin_type: str) -> Plugin | None:
    from pycni.plugins import NAMES, load

    # A plugin that delegates to an executable of ours, in a directory that it knows by itself.
    if os.sep in plugin_type:
        return _ours(plugin_type)
    return load(plugin_type) if plugin_type in NAMES else None


def _missing(plugin_type: str) -> CNIError:
    return CNIError(
        INVALID_CONFIG,
        f'failed to find plugin "{plugin_type}"',
        f"{did_you_mean(plugin_type, _names())}without a plugin directory there are only pycni's "
        f"own plugins, which are {', '.join(_names())}; name the directory that has it",
    )


def _names() -> tuple[str, ...]:
    from pycni.plugins import NAMES

    return NAMES
