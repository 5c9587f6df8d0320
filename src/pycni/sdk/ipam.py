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
    address plugin. Raises CNIError, the address plugin's own.
    """

    def __init__(self, request: Request) -> None:
        self._request = request

    def __enter__(self) -> Result:
        plugin_type = self._request.ipam_type
        if not plugin_type:
            return Result()
        result = delegate(self._request, plugin_type, "ADD")
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

    def _release(self) -> None:
        try:
            delegate_ipam(self._request)
        except CNIError:
            pass  # the failure that led here is the one to tell; DEL will release again


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
