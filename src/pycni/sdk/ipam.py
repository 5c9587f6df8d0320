"""Address plugins, from the side of the plugin that asks one."""

from __future__ import annotations

from pycni.sdk.delegate import delegate, find_delegate
from pycni.spec.errors import ADDRESS_UNAVAILABLE, INVALID_CONFIG, CNIError
from pycni.spec.result import Result
from pycni.steps.executor import translate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.sdk.delegate import Found
    from pycni.sdk.request import Request
    from pycni.steps.namespaces import HostAndSandbox


class Allocation:
    """The addresses of an ADD, released again if the block that uses them fails.

        with Allocation(request) as addresses:
            ...

    `addresses` is the address plugin's result, an empty one where the configuration names no
    address plugin. Raises CNIError, the address plugin's own. fresh: whether the interface was made
    by this very call. An address plugin that fails is then called with DEL; without, it may have
    failed because the attachment exists, whose addresses DEL would release. kernel: of the steps
    that use the addresses: while something is left of these, the addresses stay reserved for DEL.
    """

    def __init__(
        self, request: Request, *, fresh: bool = False, kernel: HostAndSandbox | None = None
    ) -> None:
        self.fresh = fresh
        self._kernel = kernel
        self._request = request
        self._found: Found | None = None

    def needs_link(self) -> bool:
        """Whether the address plugin works on the container's interface: see `needs_link`."""
        self._found = _find(self._request)
        return _works_on_link(self._found)

    def __enter__(self) -> Result:
        plugin_type = self._request.ipam_type
        if not plugin_type:
            return Result()
        try:
            found = self._found or find_delegate(self._request, plugin_type)
            _require_addresses(found, plugin_type)
            result = delegate(self._request, plugin_type, "ADD", found=found)
        except CNIError as error:
            if self.fresh and (failure := self._release()) is not None:
                also = f'DEL of the address plugin "{plugin_type}" failed as well: {failure}'
                error.details = f"{error.details}; {also}" if error.details else also
            raise
        if result is None or not result.ips:
            self._release()
            raise CNIError(
                ADDRESS_UNAVAILABLE,
                "IPAM plugin returned missing IP config",
                f'the address plugin "{plugin_type}" gave no address; see "ipam"',
            )
        return result

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and not (self._kernel is not None and self._kernel.leaves):
            self._release()

    def _release(self) -> CNIError | None:
        """Have the addresses released; returns what failed. The runtime's DEL will do it again."""
        try:
            delegate_ipam(self._request)
        except CNIError as error:
            return error
        return None


def delegate_ipam(request: Request, command: str = "DEL") -> None:
    """Have the address plugin do an operation too, if the configuration names one."""
    if not request.ipam_type:
        return
    found = find_delegate(request, request.ipam_type)
    if command in ("DEL", "GC") and not _gives_addresses(found):
        return  # no ADD has had anything of it
    _require_addresses(found, request.ipam_type)
    delegate(request, request.ipam_type, command, found=found)


def have_ipam(request: Request, command: str) -> list[CNIError]:
    """Have the address plugin do its part, whatever else failed. Returns what failed."""
    try:
        delegate_ipam(request, command)
    except CNIError as error:
        return [error]
    except OSError as error:
        return [translate(error)]
    return []


def needs_link(request: Request) -> bool:
    """Whether the address plugin works on the container's interface, as dhcp does.

    One that is not ours may: the reference calls them all while the interface is there.
    """
    return _works_on_link(_find(request))


def _find(request: Request) -> Found | None:
    """The address plugin, None if there is none."""
    if not request.ipam_type:
        return None
    try:
        return find_delegate(request, request.ipam_type)
    except CNIError:
        return None  # reported when it is called


def _gives_addresses(found: Found) -> bool:
    """Whether it may be an address plugin; an interface plugin would ask one in its turn."""
    plugin, _ = found
    return plugin is None or plugin.gives_addresses


def _require_addresses(found: Found, plugin_type: str) -> None:
    """Raise a CNIError for one of ours that is no address plugin."""
    if not _gives_addresses(found):
        raise CNIError(
            INVALID_CONFIG,
            f'"{plugin_type}" is no address plugin',
            'expected in "ipam" the type of one, such as host-local, static or dhcp',
        )


def _works_on_link(found: Found | None) -> bool:
    if found is None:
        return False
    plugin, _ = found
    return plugin is None or plugin.needs_link
