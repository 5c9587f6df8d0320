"""Address plugins, from the side of the plugin that asks one."""

from __future__ import annotations

from pycni.sdk.delegate import delegate, find_delegate
from pycni.spec.errors import ADDRESS_UNAVAILABLE, CNIError
from pycni.spec.result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.sdk.request import Request


class Allocation:
    """The addresses of an ADD, released again if the block that uses them fails.

        with Allocation(request) as addresses:
            ...

    `addresses` is the address plugin's result, an empty one where the configuration names no
    address plugin. Raises CNIError, the address plugin's own. fresh: whether the interface was made
    by this very call. An address plugin that fails is then called with DEL; without, it may have
    failed because the attachment exists, whose addresses DEL would release.
    """

    def __init__(self, request: Request, *, fresh: bool = False) -> None:
        self._request = request
        self._fresh = fresh

    def __enter__(self) -> Result:
        plugin_type = self._request.ipam_type
        if not plugin_type:
            return Result()
        try:
            result = delegate(self._request, plugin_type, "ADD")
        except CNIError as error:
            if self._fresh and (failure := self._release()) is not None:
                told = f'DEL of the address plugin "{plugin_type}" failed as well: {failure}'
                error.details = f"{error.details}; {told}" if error.details else told
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
        if kind is not None:
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
    if request.ipam_type:
        delegate(request, request.ipam_type, command)


def needs_link(request: Request) -> bool:
    """Whether the address plugin works on the container's interface, as dhcp does.

    One that is not ours may: the reference calls them all while the interface is there.
    """
    if not request.ipam_type:
        return False
    try:
        plugin, _ = find_delegate(request, request.ipam_type)
    except CNIError:
        return False  # told when it is called
    return plugin is None or plugin.needs_link
