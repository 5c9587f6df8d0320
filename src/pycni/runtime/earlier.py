"""What is there of an attachment before its ADD: a failed one takes back its own part and no more.

Runtimes repeat ADDs, and some of a list's plugins accept that which a later one refuses. Called by
`pycni.runtime.chain`.
"""

from __future__ import annotations

from pycni.runtime import attached
from pycni.runtime.errors import PluginError
from pycni.spec.errors import ALREADY_EXISTS, CNIError
from pycni.state import attachments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.runtime.endpoint import Endpoint
    from pycni.sdk.plugin import Plugin
    from pycni.spec.owner import Owner
    from pycni.state.cache import ResultCache

LOOPBACK = "lo"  # is in every namespace, attached or not


class Earlier:
    """What is there when an ADD begins.

    first: the list's first plugin, None for one that is not pycni's. If it makes the interface, it
    refuses where there is one, and there is no need to look before.
    """

    def __init__(
        self, owner: Owner, endpoint: Endpoint, cache: ResultCache, first: Plugin | None
    ) -> None:
        self._owner = owner
        self._endpoint = endpoint
        self._first_makes_it = getattr(first, "makes_link", False)
        self._has_note = attachments.is_noted(owner.tag)
        self._noted = attached.noted(owner) if self._has_note else None
        self._interface = None if self._first_makes_it else self._has_interface()
        self._is_cached = self._interface is None and self._is_in_cache(cache)

    def is_still_there(self, called: int, error: BaseException) -> bool:
        """Whether an attachment that was there before the call is, so that nothing may be undone.

        called: how many plugins were, the last of which failed with `error`.
        """
        if self._first_makes_it and called == 1 and _is_refused(error):
            return True
        if self._noted is not None and self._is_in_place() and self._is_note_unchanged():
            return True
        if not self._first_makes_it:
            return self._is_cached if self._interface is None else self._interface
        if called > 1 or not self._is_note_unchanged():
            return False
        # The plugin has taken back what it did, if it was there to do so: the interface is older.
        # Where there is no namespace it has done nothing.
        return self._has_interface() is not False

    def _has_interface(self) -> bool | None:
        if self._endpoint.ifname == LOOPBACK:
            return None
        return attached.has_interface(self._endpoint.path, self._endpoint.ifname)

    def _is_note_unchanged(self) -> bool:
        """Whether no plugin has noted a beginning, be it in place of what has gone."""
        if attachments.is_noted(self._owner.tag) != self._has_note:
            return False
        now = attached.noted(self._owner)
        if now is None or self._noted is None:
            return now is self._noted
        return now.since == self._noted.since

    def _is_in_place(self) -> bool:
        return attached.own_path(self._owner, self._endpoint.path) != ""

    def _is_in_cache(self, cache: ResultCache) -> bool:
        owner, path = self._owner, self._endpoint.path
        try:
            cached = cache.read(owner.network, owner.container_id, owner.ifname)
        except CNIError:
            return True  # a damaged file, of an attachment all the same
        return cached is not None and attached.is_same_path(cached.netns, path)


def _is_refused(error: BaseException) -> bool:
    return isinstance(error, PluginError) and error.code == ALREADY_EXISTS
