"""The plugins that work on the interface of the plugins before them: tuning, portmap, and yours.

They take prevResult and hand it on. See `pycni.sdk.planned` for what such a plugin declares.
"""

from __future__ import annotations

from pycni.sdk.planned import PlannedPlugin
from pycni.sdk.request import require_prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycni.sdk.request import Request
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox


class ChainedPlugin(PlannedPlugin):
    """Base of plugins that come second or later in a list."""

    def result(
        self, request: Request, config: Any, previous: Result, kernel: HostAndSandbox
    ) -> Result:
        """The result to hand on, from the one received; called when the plan has been made."""
        return previous

    def add(self, request: Request) -> Result:
        from pycni.sdk.netns import open_sandbox
        from pycni.steps import executor

        config = self.config.decode(request.document)
        previous = require_prev_result(request, self.unchained)
        network = self.fill_in_gateways(config, self.own_result(request, previous))
        with open_sandbox(request) as kernel, executor.Transaction(kernel) as transaction:
            transaction.apply(self.plan(request, config, network))
            return self.result(request, config, previous, kernel)
