"""The plugins of a network, called one after the other: how ADD, DEL and GC go through a list.

ADD goes forward, each plugin on the result of the one before, and takes everything back when one
fails. DEL goes backward on the result of the whole ADD, and like GC goes on after a failure. Called
by `pycni.runtime.network`, which has checked names and taken turns.
"""

from __future__ import annotations

from functools import partial

from pycni.runtime import attached, operation
from pycni.runtime import config as configs
from pycni.runtime.earlier import Earlier
from pycni.runtime.endpoint import Endpoint, cni_args, pairs
from pycni.runtime.errors import Canceled, PluginError, one_error
from pycni.runtime.locks import ProcessLock
from pycni.runtime.notify import Notifier
from pycni.sdk.request import Request
from pycni.spec import versions
from pycni.spec.config import LEGACY_ATTACHMENTS, VALID_ATTACHMENTS, ipam_type
from pycni.spec.errors import NEEDS_ROOT, CNIError
from pycni.spec.owner import Owner
from pycni.spec.record import Record
from pycni.spec.result import encode_result
from pycni.state.cache import CachedAttachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from pycni.runtime.config import NetworkConfig, PluginConfig
    from pycni.runtime.engine import Engine, Found
    from pycni.runtime.options import Options
    from pycni.spec.result import Result
    from pycni.state.cache import ResultCache

UNDO_TIMEOUT = 10.0  # seconds that each plugin has to take back what it did

_NOT_RELEASED = "{} was not called, so that the addresses stay reserved until that is removed"

# What failures of these are failure as: runtimes know the words from the reference's library.
_WORDS = {"ADD": "add", "DEL": "delete"}


class Chain(Record):
    """A network's plugins, with what is needed to call them."""

    config: NetworkConfig
    engine: Engine
    cache: ResultCache
    on_call: Callable[[str, str], None] | None = None

    def add(self, endpoint: Endpoint, options: Options) -> Result:
        """Attach. Raises CNIError, after having taken back what was done."""
        # All must be there before the first does anything.
        found = [self.find(plugin, "ADD") for plugin in self.config.plugins]
        owner = self._owner(endpoint)
        earlier = Earlier(owner, endpoint, self.cache, self.engine.pycnis(found[0]))
        result: Result | None = None
        called = 0
        try:
            for plugin, one in zip(self.config.plugins, found, strict=True):
                document = self.document(plugin, result, endpoint.capabilities)
                called += 1
                result = self.call(plugin, "ADD", document, options, endpoint, one)
            assert result is not None  # there is no network without plugins
            if not all(self.engine.own(one) for one in found):
                attached.note(owner, endpoint.path)
            self._remember(endpoint, result)
        except BaseException as error:
            if not earlier.is_still_there(called, error):
                failures = self._undo(called, result, endpoint, options)
                if isinstance(error, CNIError):
                    add_undo_failures(error, failures)
            raise
        return result

    def delete(self, endpoint: Endpoint, options: Options) -> None:
        """Detach, see `_detach`. What `on_call` raises, it raises in the end."""
        with Notifier(self.on_call) as on_call:
            self.replace(on_call=on_call)._detach(endpoint, options)

    def _detach(self, endpoint: Endpoint, options: Options) -> None:
        """Detach, by the configuration of the ADD. Raises CNIError, after having tried everything.

        While something may still name the addresses, they are not released: once a plugin that is
        not pycni's has failed, those with an address plugin are not called. What a plugin of
        pycni's own made that is missing by now, the others remove.
        """
        previous = None
        chain = self
        try:
            cached = self.cached(endpoint)
            if cached is not None:
                endpoint = completed(endpoint, cached)
                chain = self.as_added(cached)
                if chain._hands_result_to_delete:
                    previous = cached.decoded_result()
        except CNIError:
            pass  # a damaged file; plugins do without
        owner = self._owner(endpoint)
        found = [chain._find_or_none(plugin) for plugin in chain.config.plugins]
        are_own = [one is not None and self.engine.own(one) is not None for one in found]
        if not all(are_own):
            # pycni's own look for themselves.
            endpoint = endpoint.replace(netns=attached.own_path(owner, endpoint.path))
        chain._delete(endpoint, previous, options, found, are_own)
        attached.forget(owner)
        self.cache.delete(self.config.name, endpoint.container_id, endpoint.ifname)

    def _delete(
        self,
        endpoint: Endpoint,
        previous: Result | None,
        options: Options,
        found: Sequence[Found | None],
        are_own: Sequence[bool],
    ) -> None:
        """Have each plugin do its DEL.

        found: where they are, None for one that is missing; are_own: which of them are pycni's.
        """
        owner = self._owner(endpoint)
        errors: list[CNIError] = []
        others_failed = False
        missing = [
            plugin.type
            for plugin, one in zip(self.config.plugins, found, strict=True)
            if one is None
        ]
        replaced = attached.note_missing(owner, missing) if missing else set()
        untold: list[tuple[str, CNIError]] = []  # of missing plugins, whose part others remove
        calls = [*zip(self.config.plugins, found, are_own, strict=True)]
        for plugin, one, is_own in reversed(calls):
            if errors and _has_ipam(plugin) and (others_failed or not is_own):
                errors[0].details = _joined(errors[0].details, _NOT_RELEASED.format(plugin.type))
                continue
            document = self.document(plugin, previous, endpoint.capabilities)
            try:
                self.call(plugin, "DEL", document, options, endpoint, one)
            except Canceled:
                raise
            except CNIError as error:
                if one is None and plugin.type in replaced:
                    untold.append((plugin.type, error))
                else:
                    errors.append(error)
                    others_failed |= not is_own
        if untold and (noted := attached.noted(owner)) is not None:
            errors += [error for kind, error in untold if kind in noted.plugins]
        if errors:
            raise one_error(errors)

    def collect(
        self, stale: Sequence[Endpoint], living: set[tuple[str, str]], options: Options
    ) -> None:
        """GC: delete what is stale, then have the plugins look for themselves. Raises CNIError.

        What `on_call` raises, it raises in the end.
        """
        with Notifier(self.on_call) as on_call:
            self.replace(on_call=on_call)._collect(stale, living, options)

    def _collect(
        self, stale: Sequence[Endpoint], living: set[tuple[str, str]], options: Options
    ) -> None:
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
        from pycni.runtime.bulk import WORKERS

        def attempt(endpoints: Sequence[Endpoint]) -> list[CNIError]:
            errors: list[CNIError] = []
            for endpoint in endpoints:
                try:
                    self.delete(endpoint, options)
                except Canceled:
                    raise
                except CNIError as error:
                    which = f"{endpoint.container_id} {endpoint.ifname}"
                    errors.append(error.with_context(f"failed to delete stale attachment {which}"))
            return errors

        # One after the other in a container, whose settings they share.
        containers: dict[str, list[Endpoint]] = {}
        for endpoint in stale:
            containers.setdefault(endpoint.container_id, []).append(endpoint)
        found = operation.each(attempt, containers.values(), WORKERS)
        return [error for errors in found for error in errors]

    def locked(self, endpoint: Endpoint | None, options: Options) -> ProcessLock:
        """The lock against other processes, on an attachment or (None) on all of the network."""
        owner = Owner(self.config.name, "", "") if endpoint is None else self._owner(endpoint)
        return ProcessLock(self.cache.root, owner, options.get("cancel"))

    def as_added(self, cached: CachedAttachment) -> Chain:
        """The plugins that an attachment was made by: today's list may be another."""
        if not cached.config or cached.config == self.config.source:
            return self
        try:
            return self.replace(config=configs.parse_cached(cached.config, self.config))
        except CNIError:
            return self

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
        found: Found | None = None,
    ) -> Result | None:
        """Have a plugin do an operation. found: where it is, if that is known.

        Raises PluginError, Canceled.
        """
        cancel = options.get("cancel")
        if cancel is not None:
            cancel.check()
        if self.on_call is not None:
            self.on_call(command, plugin.type)
        if found is None:
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
            failure = as_plugin_error(error, plugin, command)
            if cancel is not None:
                cancel.check(failure.message)
            raise failure from error

    def find(self, plugin: PluginConfig, command: str) -> Found:
        """The plugin to call. Raises PluginError if there is none."""
        try:
            found = self.engine.find(plugin.type)
            if command == "ADD":
                self.engine.require_sound(found)
            return found
        except CNIError as error:
            raise as_plugin_error(error, plugin, command) from error

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

    def _find_or_none(self, plugin: PluginConfig) -> Found | None:
        try:
            return self.engine.find(plugin.type)
        except CNIError:
            return None

    def _owner(self, endpoint: Endpoint) -> Owner:
        return Owner(self.config.name, endpoint.container_id, endpoint.ifname)

    def _is_own_path(self, endpoint: Endpoint) -> bool:
        """Whether what is noted, if anything, is of the namespace that an ADD is given."""
        return attached.own_path(self._owner(endpoint), endpoint.path) == endpoint.path

    @property
    def _hands_result_to_delete(self) -> bool:
        return self.config.at_least("0.4.0")

    def _undo(
        self, called: int, result: Result | None, endpoint: Endpoint, options: Options
    ) -> list[CNIError]:
        """Take back what the first plugins did, in reverse. Returns what failed.

        What `on_call` raises, it raises in the end.
        """
        with Notifier(self.on_call) as on_call:
            return self.replace(on_call=on_call)._take_back(called, result, endpoint, options)

    def _take_back(
        self, called: int, result: Result | None, endpoint: Endpoint, options: Options
    ) -> list[CNIError]:
        without_cancel: Options = {**options, "cancel": None, "timeout": UNDO_TIMEOUT}
        previous = result if self._hands_result_to_delete else None
        errors: list[CNIError] = []
        for plugin in reversed(self.config.plugins[:called]):
            document = self.document(plugin, previous, endpoint.capabilities)
            try:
                operation.run(
                    partial(self.call, plugin, "DEL", document, endpoint=endpoint), without_cancel
                )
            except CNIError as error:
                errors.append(error)
        if not errors:
            try:
                if self._is_own_path(endpoint):
                    attached.forget(self._owner(endpoint))
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
            errors.append(error.with_context(what) if what else error)

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
            raise error.with_context(
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
    # A result before 0.3.0 lists no interfaces, so that the file of an older libcni does not say.
    netns = cached.netns or attached.noted_path(cached.owner)
    return Endpoint(
        cached.container_id, netns, cached.ifname, cached.cni_args, cached.capability_args
    )


def _has_ipam(plugin: PluginConfig) -> bool:
    return bool(ipam_type(plugin.document.get("ipam")))


def _joined(details: str, more: str) -> str:
    return f"{details}; {more}" if details else more


def as_plugin_error(error: CNIError, plugin: PluginConfig, command: str) -> PluginError:
    """A plugin's error with the words before it that libcni puts there."""
    prefix = ""
    if command in _WORDS:
        name = f" name={versions.quote(plugin.name)}" if plugin.name else ""
        kind = versions.quote(plugin.type)
        prefix = f"plugin type={kind}{name} failed ({_WORDS[command]}): "
    return PluginError(error, plugin.type, command, prefix)


def add_undo_failures(error: CNIError, failures: Sequence[CNIError]) -> None:
    """Add to an error that undoing what led to it failed as well.

    A plugin that refuses to undo for the reason it refused to do has done nothing; nor has one that
    lacked the rights for it.
    """
    cause = error.__cause__
    failures = [
        failure
        for failure in failures
        if str(failure.__cause__) != str(cause)
        and not (error.details == failure.details == NEEDS_ROOT)
    ]
    if failures:
        words = f"not all could be undone: {one_error(failures)}; delete the attachment"
        error.details = "; ".join(part for part in (error.details, words) if part)
