"""loopback: the sandbox's own `lo`, up. The first plugin of nearly every runtime."""

from __future__ import annotations

from pycni.kernel import address as addresses
from pycni.kernel import link as links
from pycni.plan.plan import Plan
from pycni.plan.steps import SANDBOX
from pycni.sdk.netns import find_sandbox, open_sandbox
from pycni.sdk.plugin import Plugin
from pycni.spec.errors import CHECK_FAILED, INVALID_CONFIG, CNIError
from pycni.spec.result import Interface, IPConfig, Result
from pycni.steps import ownership
from pycni.steps.executor import translate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.kernel.address import InterfaceAddress
    from pycni.kernel.link import Link
    from pycni.plan.difference import Difference
    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment
    from pycni.spec.ip import IPAddress
    from pycni.steps.namespaces import HostAndSandbox

LO = "lo"


class Loopback(Plugin):
    """Whatever CNI_IFNAME says, the interface is `lo`; there are no keys of its own."""

    type: ClassVar[str] = "loopback"
    gives_addresses: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ()
    makes_link: ClassVar[bool] = False

    def add(self, request: Request) -> Result:
        previous = request.prev_result
        with open_sandbox(request) as kernel:
            sandbox = kernel.netns(SANDBOX)
            try:
                lo = sandbox.link(LO)
                for found in addresses.dump(sandbox.netlink, lo.index):
                    _require_loopback(found.network.address, request)
                present = _set_up(kernel, lo)
            except OSError as error:
                raise translate(error) from error
        if previous is not None:
            return previous
        first = {found.network.family: found.network for found in reversed(present)}
        return Result(
            interfaces=(Interface(name=LO, mac=lo.mac, sandbox=request.netns),),
            ips=tuple(
                IPConfig(address=network, interface=0) for _, network in sorted(first.items())
            ),
        )

    def check(self, request: Request) -> None:
        previous = request.prev_result
        with open_sandbox(request) as kernel:
            sandbox = kernel.netns(SANDBOX)
            try:
                lo = sandbox.link(LO)
                present = {found.network for found in addresses.dump(sandbox.netlink, lo.index)}
            except OSError as error:
                raise translate(error) from error
        if not lo.is_up:
            raise CNIError(
                CHECK_FAILED,
                "loopback interface is down",
                f"lo of {request.netns} was set down after ADD; set it up again",
            )
        for entry in _on_lo(previous) if previous is not None else ():
            if entry.address not in present:
                raise CNIError(
                    CHECK_FAILED,
                    f"address {entry.address} is missing on interface lo",
                    f"prevResult lists it, and it was taken from lo of {request.netns} after ADD",
                )

    def repair(
        self, request: Request, *, dry_run: bool = False, remake: bool = True
    ) -> list[Difference]:
        from pycni.sdk.repair import check_only

        add = request.replace(command="ADD")
        return check_only(self, request, dry_run=dry_run, repair=lambda: self.add(add))

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        from pycni.sdk.collection import collect  # no other call needs it

        collect(self, request, keep)

    def delete(self, request: Request) -> None:
        with find_sandbox(request) as kernel:
            if kernel.sandbox is None:
                ownership.forget(kernel)
                return
            try:
                lo = kernel.sandbox.find(LO)
                if lo is not None:
                    kernel.sandbox.request(links.update(lo, up=False))
            except OSError as error:
                raise translate(error) from error
            ownership.forget(kernel)


def _set_up(kernel: HostAndSandbox, lo: Link) -> list[InterfaceAddress]:
    """Set lo up and return the addresses it has then; if that fails, it is as it was."""
    sandbox = kernel.netns(SANDBOX)
    try:
        sandbox.request(links.update(lo, up=True))
        found = addresses.dump(sandbox.netlink, lo.index)
        ownership.note(kernel, Plan())
        return found
    except (OSError, CNIError):
        if not lo.is_up:
            try:
                sandbox.request(links.update(lo, up=False))
            except OSError:
                pass  # the failure that led here is the one to report
        raise


def _on_lo(result: Result) -> list[IPConfig]:
    own = [index for index, found in enumerate(result.interfaces) if found.name == LO]
    return [entry for entry in result.ips if entry.interface in own]


def _require_loopback(address: IPAddress, request: Request) -> None:
    if not address.is_loopback:
        raise CNIError(
            INVALID_CONFIG,
            f'loopback interface found with non-loopback address "{address}"',
            f"the sandbox {request.netns} is not fresh: something gave lo that address",
        )


plugin = Loopback()
