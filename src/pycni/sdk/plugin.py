"""What a plugin is: one object with one method for each operation of the specification.

A plugin gets a `Request` and returns a `Result` or raises a `CNIError`. It knows nothing of
environment, stdin or exit codes, and keeps nothing between calls, so that many calls may run in
threads of one process. `dispatch.perform` calls it, after the checks that hold for every plugin.
"""

from __future__ import annotations

from pycni.spec import versions
from pycni.spec.config import NetConf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import ClassVar

    from pycni.plan.difference import Difference, StepReport
    from pycni.sdk.dispatch import Outcome
    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment
    from pycni.spec.result import Result

    ConfigClass = type[NetConf]


class Plugin:
    """Base of all plugins. What a plugin does not override succeeds and does nothing.

    type: the name of its executable; versions: those of the specification that it speaks;
    config: the class that declares its configuration's keys. needs_link: of an address plugin,
    whether it works on the container's interface, which then has to be there before its ADD and
    until after its DEL; gives_addresses: whether it may be an address plugin at all.
    """

    type: ClassVar[str] = ""
    versions: ClassVar[tuple[str, ...]] = versions.ALL
    config: ClassVar[ConfigClass] = NetConf
    needs_link: ClassVar[bool] = False
    gives_addresses: ClassVar[bool] = True

    def answer(self, environ: Mapping[str, str], read_stdin: Callable[[], bytes]) -> Outcome | None:
        """The outcome of a call by environment and stdin, where the plugin sees to all of it.

        For test doubles, whose output may break the protocol; None leaves the call to `dispatch`.
        """
        return None

    def add(self, request: Request) -> Result:
        """Attach the container's interface, or adjust it; all or nothing."""
        raise NotImplementedError

    def check(self, request: Request) -> None:
        """Raise a CNIError if what ADD made is not there any more or is not as it was."""

    def delete(self, request: Request) -> None:
        """Remove whatever is there of the attachment; nothing there is no error."""

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        """Remove what the network left for attachments that are not to be kept."""

    def status(self, request: Request) -> None:
        """Raise a CNIError (code 50 or 51) if an ADD could not be served now."""

    def repair(
        self, request: Request, *, dry_run: bool = False, remake: bool = True
    ) -> list[Difference]:
        """Put back what is missing of an attachment, and leave alone what is as ADD left it.

        request: as for CHECK; dry_run: only look; remake: make even the container's interface
        again. Not an operation of the specification, so it is only asked for in process. A plugin
        that does not say how can only report what its CHECK finds. Raises CNIError where nothing of
        the attachment can be repaired.
        """
        from pycni.sdk.repair import check_only

        return check_only(self, request, dry_run=dry_run)

    def inspect(self, request: Request) -> list[StepReport]:
        """What should exist of an attachment, and how it stands; [] if the plugin has no plan."""
        return []
