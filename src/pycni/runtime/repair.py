"""Repair and inspect: what the attachments of the cache lack is put back, or shown.

A reload of a firewall, `nft flush ruleset`, `iptables -F`, a bridge deleted by hand: what a living
container needs is gone, and no operation of the specification brings it back. Each attachment is
repaired with the configuration that it was made with, by its plugins in order, oldest attachment
first. Plugins that are not pycni's can only be asked to CHECK, and have no steps to show. Called by
`Network.repair`, `pycni repair` and `pycni inspect`.
"""

from __future__ import annotations

import os

from pycni.kernel import namespace
from pycni.plan.difference import AGAIN, FAILED, Difference, StepReport
from pycni.runtime import attached, find, operation
from pycni.runtime import config as configs
from pycni.runtime.chain import Chain, as_endpoint
from pycni.runtime.endpoint import Endpoint, cni_args, pairs
from pycni.runtime.engine import Engine, in_version
from pycni.runtime.locks import ATTACHMENT_LOCKS
from pycni.runtime.report import DETACHED, REPLACED, AttachmentReport
from pycni.sdk.collection import remove_leftovers
from pycni.sdk.request import Request
from pycni.spec import versions
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.identity import now
from pycni.spec.record import Record
from pycni.state.cache import ResultCache, roots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pycni.runtime.config import PluginConfig
    from pycni.runtime.endpoint import Path
    from pycni.runtime.options import Options
    from pycni.spec.owner import Owner
    from pycni.spec.result import Result
    from pycni.state.cache import CachedAttachment, Unreadable

NO_NAMESPACE = "its network namespace is gone; DEL or GC removes what is left"


class Repair(Record):
    """What all attachments are repaired with.

    fallback: the network's configuration of now, for what was attached by a runtime that noted
    none, or none of the plugins beside its list.
    remake: whether a container's interface that is gone is made again.
    """

    engine: Engine
    cache: ResultCache
    fallback: configs.NetworkConfig | None = None
    on_call: Callable[[str, str], None] | None = None
    dry_run: bool = False
    remake: bool = True

    def run(
        self,
        options: Options,
        network: str = "",
        container_id: str = "",
        ifname: str = "",
        netns: str = "",
    ) -> list[AttachmentReport]:
        """Repair what the cache has, or has of a network, container, interface, namespace."""
        known, unreadable = self.known(network, container_id, ifname, netns)
        reports = [self._attachment(cached, options) for cached in known]
        return reports + [AttachmentReport.of_file(file) for file in unreadable]

    def known(
        self, network: str, container_id: str, ifname: str, netns: str
    ) -> tuple[list[CachedAttachment], list[Unreadable]]:
        """What the cache has of these, each "" for any, the oldest first; and the files that may be
        about them and do not say so."""
        entries, unreadable = self.cache.scan(container_id, network)
        known = [
            cached
            for cached in entries
            if ifname in ("", cached.ifname)
            and (not netns or attached.is_same_path(as_endpoint(cached).path, netns))
        ]
        known.sort(key=self._age)
        return known, unreadable

    def _age(self, cached: CachedAttachment) -> int:
        try:
            path = self.cache.path(cached.network, cached.container_id, cached.ifname)
            return os.stat(path).st_mtime_ns
        except OSError:
            return 0

    def _attachment(self, cached: CachedAttachment, options: Options) -> AttachmentReport:
        cancel = options.get("cancel")
        if cancel is not None:
            cancel.check()
        report = AttachmentReport(cached.network, as_endpoint(cached))
        skipped = absent(cached.owner, report.endpoint.path)
        if skipped:
            return report.replace(skipped=skipped)
        findings: list[Difference] = []
        began = now()
        try:
            chain, result = self.chain(cached)
        except CNIError as error:
            return report.replace(findings=(_failed("", error),))
        with (
            ATTACHMENT_LOCKS.container(cached.container_id, cancel),
            chain.locked(report.endpoint, options),
        ):
            for plugin in chain.config.plugins:
                # Runtimes that are not pycni's take no such lock: look again before each.
                if chain.cached(report.endpoint) != cached:
                    break
                try:
                    findings += self._plugin(chain, plugin, report.endpoint, result, options)
                except CNIError as error:
                    findings.append(_failed(plugin.type, error))
                    break  # what this one says is true of the others' part as well
            by_now = chain.cached(report.endpoint)
            if by_now == cached:
                return report.replace(findings=tuple(findings))
            if by_now is None and attached.noted(cached.owner) is None:
                # What was put back after its DEL belongs to no attachment.
                remove_leftovers(cached.owner, began)
        return report.replace(skipped=DETACHED if by_now is None else REPLACED)

    def inspect(self, cached: CachedAttachment) -> AttachmentReport:
        """The steps of an attachment's plan, and how each stands."""
        report = AttachmentReport(cached.network, as_endpoint(cached))
        skipped = absent(cached.owner, report.endpoint.path)
        if skipped:
            return report.replace(skipped=skipped)
        steps: list[StepReport] = []
        try:
            chain, result = self.chain(cached)
            for plugin in chain.config.plugins:
                ours = self.engine.own(self.engine.find(plugin.type))
                if ours is not None:
                    request = self.request(chain, plugin, report.endpoint, result, {})
                    steps += (step.replace(plugin=plugin.type) for step in ours.inspect(request))
        except CNIError as error:
            skipped = str(error)
        return report.replace(steps=tuple(steps), skipped=skipped)

    def request(
        self,
        chain: Chain,
        plugin: PluginConfig,
        endpoint: Endpoint,
        result: Result | None,
        options: Options,
    ) -> Request:
        """What a plugin in this process is asked with: as for CHECK."""
        request = Request(
            "CHECK",
            chain.document(plugin, result, endpoint.capabilities),
            container_id=endpoint.container_id,
            netns=endpoint.path,
            ifname=endpoint.ifname,
            args=cni_args(pairs(endpoint.args)),
        )
        return self.engine.with_environment(request, options)

    def chain(self, cached: CachedAttachment) -> tuple[Chain, Result | None]:
        """The plugins that an attachment was made by, and its result. Raises CNIError."""
        config = self._config(cached)
        result = cached.decoded_result()
        if result is not None:
            result = in_version(result, config.version)
        return Chain(config, self.engine, self.cache, self.on_call), result

    def _config(self, cached: CachedAttachment) -> configs.NetworkConfig:
        if cached.config:
            return configs.parse_cached(cached.config, self.fallback)
        if self.fallback is None:
            raise CNIError(
                INVALID_CONFIG,
                "the cache has no configuration of the attachment",
                f"the runtime that made it noted none; {AGAIN}",
            )
        return self.fallback

    def _plugin(
        self,
        chain: Chain,
        plugin: PluginConfig,
        endpoint: Endpoint,
        result: Result | None,
        options: Options,
    ) -> list[Difference]:
        ours = self.engine.own(self.engine.find(plugin.type))
        if ours is None:
            document = chain.document(plugin, result, endpoint.capabilities)
            return _asked(chain, plugin, document, endpoint, options)
        if self.on_call is not None:
            self.on_call("repair", plugin.type)
        request = self.request(chain, plugin, endpoint, result, options)
        try:
            differences = ours.repair(request, dry_run=self.dry_run, remake=self.remake)
        except CNIError:
            raise
        except Exception as error:
            from pycni.sdk.dispatch import internal_error

            raise internal_error(error) from error
        return [item.replace(plugin=plugin.type) for item in differences]


def repair_all(
    *,
    cache_dir: Path | Sequence[Path] = (),
    plugin_dirs: Path | Sequence[Path] = (),
    engine: str = "auto",
    network: str = "",
    container_id: str = "",
    ifname: str = "",
    netns: str = "",
    on_call: Callable[[str, str], None] | None = None,
    dry_run: bool = False,
    remake: bool = True,
    options: Options | None = None,
) -> list[AttachmentReport]:
    """Repair the attachments of all networks that the cache has, or those of one.

    cache_dir: one cache or several, by default the usual one and those of well-known clients (see
    `pycni.state.cache.roots`). Needs no configuration but what the cache noted. The rest is as in
    `Network.repair`.
    """

    def work(options: Options) -> list[AttachmentReport]:
        reports = []
        for root in roots(cache_dir):
            repair = Repair(
                Engine(tuple(find.directories(plugin_dirs)), engine),
                ResultCache(root),
                on_call=on_call,
                dry_run=dry_run,
                remake=remake,
            )
            reports += repair.run(options, network, container_id, ifname, netns)
        return reports

    return operation.run(work, options or {})


def inspect_all(
    *,
    cache_dir: Path | Sequence[Path] = (),
    plugin_dirs: Path | Sequence[Path] = (),
    engine: str = "auto",
    network: str = "",
    container_id: str = "",
    ifname: str = "",
    netns: str = "",
) -> list[AttachmentReport]:
    """The plans of what the cache has, or has of a network, container, interface, namespace.

    cache_dir: one cache or several; see `repair_all`.
    """
    reports = []
    for root in roots(cache_dir):
        repair = Repair(Engine(tuple(find.directories(plugin_dirs)), engine), ResultCache(root))
        known, unreadable = repair.known(network, container_id, ifname, netns)
        reports += [repair.inspect(cached) for cached in known]
        reports += [AttachmentReport.of_file(file) for file in unreadable]
    return reports


def absent(owner: Owner, path: str) -> str:
    """Why the path of an attachment's namespace leads there no more, "" if it may."""
    if not path:
        return "neither its runtime nor pycni's plugins noted its network namespace"
    try:
        with namespace.open_path(path) as found, namespace.current() as host:
            if (found.device, found.inode) == (host.device, host.inode):
                return f"{path} is the host's own network namespace by now"
    except (namespace.NamespaceNotFound, namespace.NotANamespace):
        return NO_NAMESPACE
    except OSError:
        return ""  # reported when it is opened again
    if attached.own_path(owner, path) != path:
        return f"{path} is another container's by now; DEL or GC removes what is left"
    return ""


def _failed(plugin: str, error: CNIError) -> Difference:
    return Difference(error.message or str(error), FAILED, error.details, plugin)


def _asked(
    chain: Chain,
    plugin: PluginConfig,
    document: dict[str, Any],
    endpoint: Endpoint,
    options: Options,
) -> list[Difference]:
    """What the CHECK of a plugin that is not pycni's says."""
    config = chain.config
    if config.disable_check or not config.at_least(versions.SINCE["CHECK"]):
        return []
    try:
        chain.call(plugin, "CHECK", document, options, endpoint)
    except CNIError as error:
        reason = f"{plugin.type} is not pycni's, and has no operation to repair: {AGAIN}"
        return [Difference(error.message or str(error), FAILED, reason, plugin.type)]
    return []
