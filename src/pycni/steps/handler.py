"""The interface of the modules that know a kind of step: what `executor.handler` gives.

For type checkers, and `tests/unit/test_handlers.py`, which holds each module against it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    from pycni.plan.steps import Step
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

    S = TypeVar("S", bound=Step)

# The verbs that a module may do without: the executor asks by `has` before it calls them.
OPTIONAL = ("remove", "collect", "current", "repair", "repairable")

if TYPE_CHECKING:

    class Handler(Protocol[S]):
        """The verbs of a kind of step. All may raise OSError and CNIError; see `pycni.steps`."""

        def apply(self, step: S, kernel: HostAndSandbox, /) -> Undo | None:
            """Make it; return how to take it back, None if nothing was changed."""

        def check(self, step: S, kernel: HostAndSandbox, /) -> list[str]:
            """What differs from the step, a sentence each."""

        def remove(self, step: S, kernel: HostAndSandbox, /) -> None:
            """Remove it; what is missing is no error. Of kinds that outlive the interface."""

        def collect(self, kernel: HostAndSandbox, owners: Owners, /) -> None:
            """Remove what these attachments left, by their marks."""

        def current(self, step: S, kernel: HostAndSandbox, /) -> S | None:
            """The step with the value that the kernel has now. Of kinds that set one."""

        def repair(self, step: S, kernel: HostAndSandbox, /) -> None:
            """Make it again over what is left of it. By default `apply`."""

        def repairable(self, step: S, kernel: HostAndSandbox, /) -> list[str]:
            """What `repair` puts back though CHECK can do without."""
