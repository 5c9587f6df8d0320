"""The plugins of a network, called one after the other: how ADD, DEL and GC go through a list.

ADD goes forward, each plugin on the result of the one before, and takes everything back when one
fails. DEL goes backward on the result of the whole ADD, and like GC goes on after a failure. Called
by `pycni.runtime.network`, which has checked names and taken turns.
"""

from __future__ import annotations

from pycni.runtime.call import with_cancel
from pycni.runtime.endpoint import Endpoint, cni_args, pairs
from pycni.runtime.errors import Canceled, PluginError, one_error
from pycni.sdk.request import Request
from pycni.spec import versions
from pycni.spec.config import LEGACY_ATTACHMENTS, VALID_ATTACHMENTS
from pycni.spec.errors import CNIError
from pycni.spec.record import Record
from pycni.spec.result import encode_result
from pycni.state.cache import CachedAttachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from pycni.runtime.call import Options
    from pycni.runtime.config import NetworkConfig, PluginConfig
    from pycni.runtime.engine import Engine, Found
    from pycni.spec.result import Result
    from pycni.state.cache import ResultCache

# What failures of these are told as: runtimes know the words from the reference's library.
_WORDS = {"ADD": "add", "DEL": "delete"}


class Chain(Record):
    """A network's plugins, with what is needed to call them."""

    config: NetworkConfig
    engine: Engine
    cache: ResultCache
    on_call: Callable[[str, str], None] | None = None

    def add(self, endpoint: Endpoint, options: Options) -> Result:
        """Attach. Raises CNIError, after having taken back what was done."""
        for plugin in self.config.plugins:
            self.find(plugin, "ADD")  # all must be there before the first does anything
        known = self._is_known(endpoint)
        result: Result | None = None
        called = 0
        try:
            for plugin in self.config.plugins:
                document = self.document(plugin, result, endpoint.capabilities)
                called += 1
                result = self.call(plugin, "ADD", document, options, endpoint)
            assert result is not None  # there is no network without plugins
            self._remember(endpoint, result)
        except BaseException as error:
            # An attachment that is there already is not taken back because its second ADD is
            # refused.
            if called > 1 or not known:
                failures = self._undo(called, result, endpoint, options)
                if isinstance(error, CNIError):
                    _tell_too(error, failures)
            raise
        return result

    def delete(self, endpoint: Endpoint, options: Options) -> None:
        """Detach. Raises CNIError, after having tried everything."""
        previous = None
        try:
            cached = self.cached(endpoint)
            if cached is not None:
                endpoint = completed(endpoint, cached)
                if self._hands_result_to_delete:
                    previous = cached.decoded_result()
        except CNIError:
            pass  # a damaged file; plugins do without
        errors: list[CNIError] = []
        for plugin in reversed(self.config.plugins):
            document = self.document(plugin, previous, endpoint.capabilities)
            self._try(errors, "", plugin, "DEL", document, options, endpoint)
        if errors:
            raise one_error(errors)
        self.cache.delete(self.config.name, endpoint.container_id, endpoint.ifname)

    def collect(
        self, stale: Sequence[Endpoint], living: set[tuple[str, str]], options: Options
    ) -> None:
        """GC: delete what is stale, then have the plugins look for themselves. Raises CNIError."""
        errors = self._delete_stale(stale, options) if stale else []
        if self.config.at_least(versions.SINCE["GC"]):
            keep = [{"containerID": name, "ifname": ifname} for name, ifname in sorted(living)]
            for plugin in self.config.plugins:
                document = {
                    **self.document(plugin), VALID_ATTACHMENTS: keep, LEGACY_ATTACHMENTS: keep
                }  # fmt: skip
                self._try(
                    errors, f"failed to GC plugin {plugin.type}", plugin, "GC", document, options
                )
        if errors:
            raise one_error(errors)

    def _delete_stale(self, stale: Sequence[Endpoint], options: Options) -> list[CNIError]:
        """Delete many at once, for the kernel lets each wait. Returns what failed."""
        from concurrent.futures import ThreadPoolExecutor

        from pycni.runtime.many import WORKERS

        def attempt(endpoint: Endpoint) -> CNIError | None:
            try:
                self.delete(endpoint, options)
            except Canceled:
                raise
            except CNIError as error:
                which = f"{endpoint.container_id} {endpoint.ifname}"
                return error.within(f"failed to delete stale attachment {which}")
            return None

        # The pool's threads start in the network namespace of this one, the host to plugins.
        with ThreadPoolExecutor(WORKERS, "pycni") as pool:
            return [error for error in pool.map(attempt, stale) if error is not None]

    def document(
        self,
        plugin: PluginConfig,
        previous: Result | None = None,
        capabilities: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The configuration that a plugin gets on its stdin."""
        version = self.config.version
        document = {**plugin.document, "name": self.config.name, "cniVersion": version}
        if previous is not None:
            document["prevResult"] = encode_result(previous, version)
        if capabilities:
            declared = plugin.capabilities
            wanted = {name: value for name, value in capabilities.items() if name in declared}
            if wanted:
                document["runtimeConfig"] = wanted
        return document

    def call(
        self,
        plugin: PluginConfig,
        command: str,
        document: Mapping[str, Any],
        options: Options,
        endpoint: Endpoint | None = None,
    ) -> Result | None:
        """Have a plugin do an operation. Raises PluginError, Canceled."""
        cancel = options.get("cancel")
        if cancel is not None:
            cancel.check()
        if self.on_call is not None:
            self.on_call(command, plugin.type)
        found = self.find(plugin, command)
        request = Request(command, document)
        if endpoint is not None:
            request = request.replace(
                container_id=endpoint.container_id,
                netns=endpoint.path,
                ifname=endpoint.ifname,
                args=cni_args(pairs(endpoint.args)),
            )
        try:
            return self.engine.call(found, request, options)
        except CNIError as error:
            if cancel is not None:
                cancel.check()
            raise _told(error, plugin, command) from error

    def find(self, plugin: PluginConfig, command: str) -> Found:
        """The plugin to call. Raises PluginError if there is none."""
        try:
            return self.engine.find(plugin.type)
        except CNIError as error:
            raise _told(error, plugin, command) from error

    @property
    def is_in_process(self) -> bool:
        """Whether all plugins are called in this process."""
        try:
            return all(self.engine.find(plugin.type).plugin for plugin in self.config.plugins)
        except CNIError:
            return False

    def cached(self, endpoint: Endpoint) -> CachedAttachment | None:
        """What the cache has of an attachment. Raises CNIError for a damaged file."""
        return self.cache.read(self.config.name, endpoint.container_id, endpoint.ifname)

    def _is_known(self, endpoint: Endpoint) -> bool:
        try:
            return self.cached(endpoint) is not None
        except CNIError:
            return True

    @property
    def _hands_result_to_delete(self) -> bool:
        return self.config.at_least("0.4.0")

    def _undo(
        self, called: int, result: Result | None, endpoint: Endpoint, options: Options
    ) -> list[CNIError]:
        """Take back what the first plugins did, in reverse. Returns what failed."""
        patient = with_cancel(options, None)
        previous = result if self._hands_result_to_delete else None
        errors: list[CNIError] = []
        for plugin in reversed(self.config.plugins[:called]):
            document = self.document(plugin, previous, endpoint.capabilities)
            self._try(errors, "", plugin, "DEL", document, patient, endpoint)
        if not errors:
            try:
                self.cache.delete(self.config.name, endpoint.container_id, endpoint.ifname)
            except CNIError as error:
                errors.append(error)
        return errors

    def _try(
        self,
        errors: list[CNIError],
        what: str,
        plugin: PluginConfig,
        command: str,
        document: Mapping[str, Any],
        options: Options,
        endpoint: Endpoint | None = None,
    ) -> None:
        """Call a plugin and go on whatever it says; what failed is appended to `errors`."""
        try:
            self.call(plugin, command, document, options, endpoint)
        except Canceled:
            raise
        except CNIError as error:
            errors.append(error.within(what) if what else error)

    def _remember(self, endpoint: Endpoint, result: Result) -> None:
        try:
            self.cache.write(
                CachedAttachment(
                    network=self.config.name,
                    container_id=endpoint.container_id,
                    ifname=endpoint.ifname,
                    config=self.config.source,
                    netns=endpoint.path,
                    cni_args=pairs(endpoint.args),
                    capability_args=endpoint.capabilities,
                    result=encode_result(result, self.config.version),
                )
            )
        except CNIError as error:
            raise error.within(
                f"failed to set network {versions.quote(self.config.name)} cached result"
            ) from error


def completed(endpoint: Endpoint, cached: CachedAttachment) -> Endpoint:
    """An attachment with what its ADD was given in place of what was left open."""
    given = as_endpoint(cached)
    return endpoint.replace(
        netns=given.netns if endpoint.netns is None else endpoint.netns,
        args=given.args if endpoint.args is None else endpoint.args,
        capabilities=given.capabilities if endpoint.capabilities is None else endpoint.capabilities,
    )


def as_endpoint(cached: CachedAttachment) -> Endpoint:
    """What the cache has of an attachment, as it was asked for."""
    return Endpoint(
        cached.container_id, cached.netns, cached.ifname, cached.cni_args, cached.capability_args
    )


def _told(error: CNIError, plugin: PluginConfig, command: str) -> PluginError:
    prefix = ""
    if command in _WORDS:
        name = f" name={versions.quote(plugin.name)}" if plugin.name else ""
        kind = versions.quote(plugin.type)
        prefix = f"plugin type={kind}{name} failed ({_WORDS[command]}): "
    return PluginError(error, plugin.type, command, prefix)


def _tell_too(error: CNIError, failures: Sequence[CNIError]) -> None:
    """Add to an error that undoing what led to it failed as well.

    A plugin that refuses to undo for the reason it refused to do has done nothing.
    """
    told = error.__cause__
    failures = [failure for failure in failures if str(failure.__cause__) != str(told)]
    if failures:
        words = f"not all could be undone: {one_error(failures)}; delete the attachment"
        error.details = "; ".join(part for part in (error.details, words) if part)
