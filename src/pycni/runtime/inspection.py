"""Inspect: the plans of attachments that the cache has, and how each step stands.

Only pycni's own plugins have plans to show. Called by `pycni inspect`.
"""

from __future__ import annotations

from pycni.runtime import find
from pycni.runtime.chain import as_endpoint
from pycni.runtime.engine import Engine
from pycni.runtime.network import ATTACHMENT_LOCKS
from pycni.runtime.repair import Examined, Repair, absent
from pycni.spec.errors import CNIError
from pycni.spec.record import Record
from pycni.state.cache import ResultCache, roots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pycni.runtime.endpoint import Path
    from pycni.state.cache import CachedAttachment


class Shown(Record):
    """A step: of which plugin, its kind, its fields in words, and what differs."""

    plugin: str
    kind: str
    what: str
    differences: tuple[str, ...] = ()


class Inspected(Examined):
    """What an attachment is made of."""

    steps: tuple[Shown, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `pycni inspect -o json` prints it."""
        return {
            **super().to_json(),
            "steps": [
                {
                    "plugin": step.plugin,
                    "kind": step.kind,
                    "what": step.what,
                    "differences": list(step.differences),
                }
                for step in self.steps
            ],
        }


def inspect_all(
    *,
    cache_dir: Path | Sequence[Path] = (),
    plugin_dirs: Path | Sequence[Path] = (),
    engine: str = "auto",
    network: str = "",
    container_id: str = "",
    ifname: str = "",
) -> list[Inspected]:
    """The plans of what the cache has, or has of a network, container, interface.

    cache_dir: one cache or several; see `repair_all`.
    """
    found = []
    for root in roots(cache_dir):
        looking = Repair(
            Engine(tuple(find.directories(plugin_dirs)), engine),
            ResultCache(root),
            ATTACHMENT_LOCKS,
        )
        known, unreadable = looking.known(network, container_id, ifname)
        found += [_inspect(looking, cached) for cached in known]
        found += [Inspected.of_file(file) for file in unreadable]
    return found


def _inspect(looking: Repair, cached: CachedAttachment) -> Inspected:
    found = Inspected(cached.network, as_endpoint(cached))
    skipped = absent(cached.owner, found.endpoint.path)
    if skipped:
        return found.replace(skipped=skipped)
    steps: list[Shown] = []
    try:
        chain, result = looking.chain(cached)
        for plugin in chain.config.plugins:
            own = looking.engine.own(looking.engine.find(plugin.type))
            if own is not None:
                request = looking.request(chain, plugin, found.endpoint, result, {})
                steps += (
                    Shown(plugin.type, part.kind, part.what, part.differences)
                    for part in own.inspect(request)
                )
    except CNIError as error:
        return found.replace(steps=tuple(steps), skipped=str(error))
    return found.replace(steps=tuple(steps))
