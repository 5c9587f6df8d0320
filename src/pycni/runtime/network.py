"""A network, and the operations on it: what a container runtime, or any program, attaches with.

    network = Network.load("lab", conf_dir="/etc/cni/net.d")
    result = network.add("web-1", "/run/netns/web-1")
    network.delete("web-1", "/run/netns/web-1")

The rules are those of SPEC 1.1.0, "Execution of network configurations". Objects keep nothing
between calls but their configuration: what is attached stands in the cache, which other runtimes
read and write too. All methods may be called from many threads at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, Unpack

from pycni.runtime import config as configs
from pycni.runtime import find, operation
from pycni.runtime.bulk import ADD_WORKERS, WORKERS, Outcome, add_many, delete_many
from pycni.runtime.chain import Chain, as_endpoint, completed
from pycni.runtime.config import NetworkConfig, PluginConfig
from pycni.runtime.endpoint import (
    IFNAME,
    Args,
    Endpoint,
    Path,
    check_args,
    check_capabilities,
    pairs,
)
from pycni.runtime.engine import Engine, in_version
from pycni.runtime.errors import Canceled, ConfigError, PluginError, one_error
from pycni.runtime.garbage import Garbage
from pycni.runtime.locks import ATTACHMENT_LOCKS, HeldLock
from pycni.runtime.options import Options, with_cancel
from pycni.runtime.report import AttachmentReport
from pycni.sdk.plugin import Plugin
from pycni.spec import versions
from pycni.spec.config import Attachment
from pycni.spec.errors import (
    INCOMPATIBLE_VERSION,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    UNKNOWN_CONTAINER,
    CNIError,
)
from pycni.spec.result import Result
from pycni.state.cache import ROOT, CachedAttachment, ResultCache

_UNKNOWN_COMMAND = "unknown CNI_COMMAND"  # the reference's words


class Network:
    """A network to attach containers to.

    config: its configuration; skipped: files that were in the way of finding it and could not be
    used; on_call: called with the operation and the plugin's type before each call of a plugin.
    What that raises, the operation raises: an ADD is undone, DEL, GC and undo go on before.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        plugin_dirs: Path | Sequence[Path] = (),
        engine: str = "auto",
        cache_dir: Path = ROOT,
        resolve: Callable[[str], Plugin | None] | None = None,
        on_call: Callable[[str, str], None] | None = None,
    ) -> None:
        """A network from a configuration; `load` and `from_dict` find or make one.

        plugin_dirs: where plugins are; without any, pycni's own are called in this process. engine:
        "auto" calls those found there that are pycni's own in this process and runs the others,
        "exec" runs all as processes. cache_dir: what is attached is noted below it. resolve: plugin
        objects of your own, by type, which "auto" takes before all others; None for no such type.
        What they return, raise and change is looked at: see `pycni.runtime.foreign`.
        """
        self.config = config
        self.skipped: tuple[ConfigError, ...] = ()
        self._engine = Engine(tuple(find.directories(plugin_dirs)), engine, resolve)
        self._cache = ResultCache(os.fspath(cache_dir))
        self._chain = Chain(config, self._engine, self._cache, on_call)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        conf_dir: Path | Sequence[Path] = find.DEFAULT_DIRECTORY,
        **settings: Any,
    ) -> Self:
        """The network of a name from a directory of configurations, or several.

        settings: as for the constructor. Files of other networks that cannot be used are noted in
        `skipped`. Raises NetworkNotFound, or ConfigError for the network's own file.
        """
        config, skipped = find.find_network(name, find.directories(conf_dir))
        network = cls(config, **settings)
        network.skipped = skipped
        return network

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], **settings: Any) -> Self:
        """A network from a configuration: a list with `plugins`, or a single plugin.

        settings: as for the constructor. Raises ConfigError.
        """
        return cls(configs.from_document(document), **settings)

    @classmethod
    def from_cache(
        cls,
        name: str,
        container_id: str,
        ifname: str = IFNAME,
        *,
        cache_dir: Path = ROOT,
        **settings: Any,
    ) -> Self | None:
        """A network as it was when a container was attached to it; None if the cache does not know.

        For DEL, where the network's configuration has changed or gone since. Raises ConfigError.
        """
        cached = ResultCache(os.fspath(cache_dir)).read(name, container_id, ifname)
        if cached is None or not cached.config:
            return None
        return cls(configs.parse_network(cached.config), cache_dir=cache_dir, **settings)

    def __repr__(self) -> str:
        kinds = ", ".join(plugin.type for plugin in self.config.plugins)
        return f"<Network {self.name}: {kinds}>"

    @property
    def name(self) -> str:
        """The network's name."""
        return self.config.name

    # --- attachments ---------------------------------------------------------------------------

    def add(
        self,
        container_id: str,
        netns: Path,
        ifname: str = IFNAME,
        *,
        args: Args | None = None,
        capabilities: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Attach a container: have each plugin do its ADD, in order; returns the last one's result.

        See `Endpoint` for the arguments and `Options` for the rest. If a plugin fails, what the
        call had done is undone, in reverse. Raises PluginError, or another CNIError.
        """
        endpoint = Endpoint(container_id, netns, ifname, args, capabilities)
        return self.add_endpoint(endpoint, **options)

    def add_endpoint(self, endpoint: Endpoint, **options: Unpack[Options]) -> Result:
        """`add`, with its arguments in one object."""
        endpoint.check()
        if not endpoint.path:
            raise CNIError(
                INVALID_ENVIRONMENT,
                "required env variables [CNI_NETNS] missing",
                "ADD needs the path of the container's network namespace",
            )
        check_capabilities(endpoint.capabilities or {})
        given = pairs(endpoint.args)
        check_args(given)
        endpoint = endpoint.replace(args=given)

        def add(options: Options) -> Result:
            with (
                self._turn(endpoint, options),
                self._chain.locked(endpoint, options),
            ):
                return self._chain.add(endpoint, options)

        return operation.run(add, options, lambda _: self.delete_endpoint(endpoint))

    def delete(
        self,
        container_id: str,
        netns: Path | None = None,
        ifname: str = IFNAME,
        *,
        args: Args | None = None,
        capabilities: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Detach a container: have each plugin do its DEL, last one first, with what ADD returned.

        Nothing there is no error. A plugin's failure does not keep the others from their part; what
        is raised at the end is all that failed, and the attachment stays noted so that this can be
        tried again. netns, args and capabilities default to what ADD was given. Raises PluginError,
        SeveralErrors, or another CNIError.
        """
        endpoint = Endpoint(container_id, netns, ifname, args, capabilities)
        self.delete_endpoint(endpoint, **options)

    def delete_endpoint(self, endpoint: Endpoint, **options: Unpack[Options]) -> None:
        """`delete`, with its arguments in one object."""
        endpoint.check()

        def delete(options: Options) -> None:
            with (
                self._turn(endpoint, options),
                self._chain.locked(endpoint, options),
            ):
                self._chain.delete(endpoint, options)

        operation.run(delete, options)

    def check(
        self,
        container_id: str,
        netns: Path | None = None,
        ifname: str = IFNAME,
        *,
        args: Args | None = None,
        capabilities: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Check that a container is still attached as ADD left it.

        netns, args and capabilities default to what ADD was given. Raises PluginError for the first
        plugin that finds a difference, CNIError if the container was never attached (code 3) or the
        network's version has no CHECK (code 1).
        """
        endpoint = Endpoint(container_id, netns, ifname, args, capabilities)
        endpoint.check()
        if self.config.disable_check:
            return
        if not self.config.at_least(versions.SINCE["CHECK"]):
            raise CNIError(
                INCOMPATIBLE_VERSION,
                f"configuration version {versions.quote(self.config.version)} "
                "does not support the CHECK command",
                f'CHECK came with {versions.SINCE["CHECK"]}: raise the network\'s "cniVersion"',
            )
        operation.run(lambda options: self._check(endpoint, options), options)

    def _check(self, endpoint: Endpoint, options: Options) -> None:
        with self._turn(endpoint, options), self._chain.locked(endpoint, options):
            try:
                cached = self._chain.cached(endpoint)
            except CNIError as error:
                raise self._damaged(error) from error
            if cached is None:
                raise CNIError(
                    UNKNOWN_CONTAINER,
                    f"container {endpoint.container_id} is not attached to the network "
                    f"{self.name} by {endpoint.ifname}",
                    "the cache has no result of an ADD; only what was added can be checked",
                )
            previous = self._result(cached)
            endpoint = completed(endpoint, cached)
            chain = self._chain.as_added(cached)
            for plugin in chain.config.plugins:
                document = chain.document(plugin, previous, endpoint.capabilities)
                chain.call(plugin, "CHECK", document, options, endpoint)

    @staticmethod
    def _turn(endpoint: Endpoint, options: Options) -> HeldLock:
        return ATTACHMENT_LOCKS.container(endpoint.container_id, options.get("cancel"))

    def repair(
        self,
        container_id: str = "",
        ifname: str = "",
        *,
        dry_run: bool = False,
        remake: bool = True,
        **options: Unpack[Options],
    ) -> list[AttachmentReport]:
        """Put back what is missing of the network's attachments, and leave alone what is sound.

        For all of them, or one container's. Each is repaired with the configuration that it was
        attached with. Addresses stay what they are. dry_run: only report what is missing; remake:
        make even an interface again that is gone. Returns what became of each attachment; see
        `pycni.runtime.repair`. Of a plugin that is not pycni's own only CHECK can be asked, and
        what that finds cannot be repaired.
        """
        from pycni.runtime.repair import Repair

        repair = Repair(
            self._engine,
            self._cache,
            self.config,
            self._chain.on_call,
            dry_run,
            remake,
        )
        return operation.run(
            lambda options: repair.run(options, self.name, container_id, ifname), options
        )

    def attached(
        self,
        container_id: str,
        netns: Path,
        ifname: str = IFNAME,
        *,
        args: Args | None = None,
        capabilities: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Attached:
        """A context manager: the container is attached during the block, which gets the result."""
        return Attached(self, Endpoint(container_id, netns, ifname, args, capabilities), options)

    def add_many(
        self,
        endpoints: Iterable[Endpoint],
        *,
        workers: int | None = None,
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """Attach many containers at once, in `workers` threads; see `pycni.runtime.bulk`.

        workers: by default as many as help, which for plugins in this process are fewer. Returns an
        outcome for each, in order. One that fails is undone and the others go on.
        """
        if workers is None:
            workers = ADD_WORKERS if self._chain.is_in_process else WORKERS
        return add_many(self, endpoints, workers, options)

    def delete_many(
        self, endpoints: Iterable[Endpoint], *, workers: int = WORKERS, **options: Unpack[Options]
    ) -> list[Outcome]:
        """Detach many containers at once; returns an outcome for each, in order."""
        return delete_many(self, endpoints, workers, options)

    def attachments(self) -> list[Endpoint]:
        """What is attached to this network, as the cache has it."""
        return [as_endpoint(cached) for cached in self._cache.attachments(network=self.name)]

    def result(self, container_id: str, ifname: str = IFNAME) -> Result | None:
        """What ADD returned for an attachment, from the cache; None if it is not attached."""
        cached = self._cache.read(self.name, container_id, ifname)
        return None if cached is None else self._result(cached)

    # --- the network ---------------------------------------------------------------------------

    def gc(
        self,
        keep: Iterable[Attachment | Endpoint | tuple[str, str]] | None,
        *,
        dry_run: bool = False,
        force: bool = False,
        **options: Unpack[Options],
    ) -> list[Endpoint]:
        """Remove what is left of attachments that are not alive any more.

        keep: the living ones, as (container id, interface); an empty list means that none is, None
        is refused, since it says nothing. Attachments that the cache has and `keep` has not are
        deleted; then each plugin does its GC, if the network's version has it (1.1.0). What is
        alive in the kernel and neither in `keep` nor in the cache is another client's: it is kept,
        unless `force` is set; `garbage` names it. Goes on after a failure and raises all at the
        end. Returns the attachments that were removed, or with dry_run would be, as far as cache,
        plugins' notes and leases have them.
        """
        living = self._living(keep)
        if self.config.disable_gc:
            return []
        return operation.run(lambda options: self._gc(living, dry_run, force, options), options)

    def _gc(
        self, living: set[tuple[str, str]], dry_run: bool, force: bool, options: Options
    ) -> list[Endpoint]:
        with ATTACHMENT_LOCKS.exclusive(options.get("cancel")), self._chain.locked(None, options):
            found = self._garbage(living)
            removed = [*found.noted, *found.leftovers]
            if force:
                removed += [one.endpoint for one in found.living]
            else:
                living |= {_key(one.endpoint) for one in found.living}
            if not dry_run:
                self._chain.collect(found.noted, living, options)
        return removed

    def garbage(self, keep: Iterable[Attachment | Endpoint | tuple[str, str]] | None) -> Garbage:
        """What `gc` would find, with what is alive and in no list. Raises CNIError."""
        return self._garbage(self._living(keep))

    def _living(
        self, keep: Iterable[Attachment | Endpoint | tuple[str, str]] | None
    ) -> set[tuple[str, str]]:
        if keep is None:
            raise CNIError(
                INVALID_CONFIG,
                "GC without the attachments to keep",
                "a missing list is refused, since it says nothing of what is alive; "
                "an empty list removes everything of the network",
            )
        living = {_key(item) for item in _attachments(keep)}
        for container_id, ifname in living:
            Endpoint(container_id, ifname=ifname).check()
        return living

    def _garbage(self, living: set[tuple[str, str]]) -> Garbage:
        from pycni.runtime.garbage import find_garbage

        found = find_garbage(self.config, self._cache, living)
        if self.config.at_least(versions.SINCE["GC"]):
            return found
        return found.replace(leftovers=(), living=())  # plugins are not asked

    def status(self, **options: Unpack[Options]) -> tuple[str, ...]:
        """Ask each plugin whether it could serve an ADD now; the first that could not is raised.

        PluginError has code 50 (no ADD possible) or 51 (nor are running containers well served), or
        says that there is no such plugin. Before 1.1.0 only pycni's own plugins can be asked.
        Returns the types of those that could not be asked.
        """

        def work(options: Options) -> tuple[str, ...]:
            plugins = self.config.plugins
            if not self.config.at_least(versions.SINCE["STATUS"]):
                return tuple(one.type for one in plugins if not self._is_asked(one, options))
            for plugin in plugins:
                self._chain.call(plugin, "STATUS", self._chain.document(plugin), options)
            return ()

        return operation.run(work, options)

    def _is_asked(self, plugin: PluginConfig, options: Options) -> bool:
        """Ask a plugin of an older network, if it is pycni's. Raises PluginError."""
        found = self._chain.find(plugin, "STATUS")
        if self._engine.own(found) is None:
            return False
        # pycni's plugins do the same whichever version they are asked in.
        document = {**self._chain.document(plugin), "cniVersion": versions.SINCE["STATUS"]}
        try:
            self._chain.call(plugin, "STATUS", document, options, found=found)
        except PluginError as error:
            # It has asked an address plugin that is older.
            if error.code != INCOMPATIBLE_VERSION and _UNKNOWN_COMMAND not in error.message:
                raise
            return False
        return True

    def versions(self, **options: Unpack[Options]) -> dict[str, tuple[str, ...]]:
        """The versions of the specification that each plugin speaks, by its type."""

        def work(options: Options) -> dict[str, tuple[str, ...]]:
            return {plugin.type: self._speaks(plugin, options) for plugin in self.config.plugins}

        return operation.run(work, options)

    def validate(self, **options: Unpack[Options]) -> frozenset[str]:
        """Check that all plugins are there and speak the network's version.

        Returns the capabilities that they declare. Raises all that is wrong, in one error.
        """
        return operation.run(self._validate, options)

    def _validate(self, options: Options) -> frozenset[str]:
        version = self.config.version or versions.DEFAULT
        errors: list[CNIError] = []
        for plugin in self.config.plugins:
            try:
                supported = self._speaks(plugin, options)
            except Canceled:
                raise
            except CNIError as error:
                errors.append(error)
                continue
            if version not in supported:
                refused = CNIError(
                    INCOMPATIBLE_VERSION,
                    f"plugin {plugin.type} does not support config version "
                    f"{versions.quote(self.config.version)}",
                    f"it supports {', '.join(supported)}",
                )
                errors.append(PluginError(refused, plugin.type, "VERSION"))
        if errors:
            raise one_error(errors)
        return frozenset().union(*(plugin.capabilities for plugin in self.config.plugins))

    def _speaks(self, plugin: PluginConfig, options: Options) -> tuple[str, ...]:
        found = self._chain.find(plugin, "VERSION")
        try:
            return self._engine.versions(found, options)
        except CNIError as error:
            failure = PluginError(error, plugin.type, "VERSION")
            cancel = options.get("cancel")
            if cancel is not None:
                cancel.check(failure.message)
            raise failure from error

    def _result(self, cached: CachedAttachment) -> Result | None:
        try:
            result = cached.decoded_result()
            return None if result is None else in_version(result, self.config.version)
        except CNIError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: CNIError) -> CNIError:
        return error.with_context(
            f"failed to get network {versions.quote(self.name)} cached result"
        )


class Attached:
    """A container's attachment during a `with` block; see `Network.attached`."""

    def __init__(self, network: Network, endpoint: Endpoint, options: Options) -> None:
        self._network = network
        self._endpoint = endpoint
        self._options = options

    def __enter__(self) -> Result:
        return self._network.add_endpoint(self._endpoint, **self._options)

    def __exit__(self, *_: object) -> None:
        self._network.delete_endpoint(self._endpoint, **with_cancel(self._options, None))


def _attachments(
    keep: Iterable[Attachment | Endpoint | tuple[str, str]],
) -> list[Attachment | Endpoint | tuple[str, str]]:
    """All of a list, if that is what it should be. Raises TypeError."""
    listed = list(keep)
    for item in listed:
        is_pair = isinstance(item, tuple) and len(item) == 2
        if not (is_pair or isinstance(item, (Attachment, Endpoint))):
            raise TypeError(
                f"{item!r} is no attachment to keep: expected pairs of container id and interface"
            )
    return listed


def _key(item: Attachment | Endpoint | tuple[str, str]) -> tuple[str, str]:
    if isinstance(item, tuple):
        container_id, ifname = item
        return container_id, ifname
    return item.container_id, item.ifname
