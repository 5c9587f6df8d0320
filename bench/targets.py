"""What must hold: medians of ratios, by work, operation and way of calling.

`work` and `operation` are a measurement's; the ratio is to its table's reference.
"""

from __future__ import annotations

from contenders import AGENT, COLD, IN_PROCESS
from growth import MANY


def _in_all_ways(
    work: str, operation: str, agent: float, cold: float, in_process: float
) -> list[tuple[str, str, str, str, float]]:
    limits = {AGENT: agent, COLD: cold, IN_PROCESS: in_process}
    return [(work, operation, way, way, limit) for way, limit in limits.items()]


TARGETS = [
    *_in_all_ways("bridge", "ADD", 0.5, 2.5, 0.2),
    *_in_all_ways("bridge + ipMasq", "ADD", 0.2, 1.0, 0.1),
    *_in_all_ways("bridge + ipMasq", "DEL", 0.4, 0.6, 0.4),
    *_in_all_ways("pod, 200 present", "ADD", 0.1, 0.6, 0.06),
    *_in_all_ways("host-local, 20,000 leases", "ADD", 0.02, 0.1, 0.01),
    *((f"1,000 pods, {way}", "ADD", way, MANY, 1.2) for way in (AGENT, COLD, IN_PROCESS)),
]
