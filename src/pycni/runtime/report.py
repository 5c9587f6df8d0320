"""What repair and inspect report of an attachment. Made by `pycni.runtime.repair`."""

from __future__ import annotations

from pycni.plan.difference import REPAIRED, Difference, StepReport
from pycni.runtime.endpoint import Endpoint
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from pycni.state.cache import Unreadable

DETACHED = "it was detached meanwhile"
REPLACED = "it was detached meanwhile, and attached again"


class AttachmentReport(Record):
    """How an attachment stands, and what became of what was missing.

    skipped: why it was not looked at, "" if it was; file: set for a file of the cache that does not
    say what is attached, and nothing else then. findings: what repair found missing; steps: of its
    plan, as inspect shows them.
    """

    network: str
    endpoint: Endpoint
    skipped: str = ""
    file: str = ""
    findings: tuple[Difference, ...] = ()
    steps: tuple[StepReport, ...] = ()

    @classmethod
    def of_file(cls, file: Unreadable) -> Self:
        """The report of a file of the cache that says of no attachment."""
        return cls("", Endpoint("", ifname=""), f"{file.path} {file.reason}", file.path)

    @property
    def name(self) -> str:
        """What to call it: NETWORK/CONTAINER/INTERFACE, with its pod; or the file."""
        if self.file:
            return self.file
        pod = f" ({self.pod})" if self.pod else ""
        return f"{self.network}/{self.endpoint.container_id}/{self.endpoint.ifname}{pod}"

    @property
    def pod(self) -> str:
        """See `Endpoint.pod`."""
        return self.endpoint.pod

    @property
    def is_sound(self) -> bool:
        """Whether it was looked at, and nothing was missing."""
        return not (self.findings or self.skipped)

    @property
    def ok(self) -> bool:
        """Whether nothing is missing now: what could not be looked at is not known to be sound."""
        if self.skipped:
            return self.skipped in (DETACHED, REPLACED)
        return all(finding.state == REPAIRED for finding in self.findings)

    def to_json(self, *, with_steps: bool = False) -> dict[str, Any]:
        """As `pycni repair -o json` prints it; with its steps instead, as `pycni inspect` does."""
        document = {
            "network": self.network,
            "containerID": self.endpoint.container_id,
            "ifname": self.endpoint.ifname,
            "netns": self.endpoint.path,
            "pod": self.pod,
            "skipped": self.skipped,
            "file": self.file,
        }
        if with_steps:
            return {**document, "steps": [step.to_json() for step in self.steps]}
        return {**document, "findings": [finding.to_json() for finding in self.findings]}
