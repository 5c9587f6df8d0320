"""A kernel setting (`plan.steps.Sysctl`)."""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Kernel
    from pycni.kernel.executor import Undo
    from pycni.plan.steps import Sysctl


def apply(step: Sysctl, kernel: Kernel) -> Undo | None:
    try:
        before = kernel.site(step.where).write_sysctl(step.key, step.value)
    except OSError:
        if step.required:
            raise
        return None
    if before == step.value:
        return None
    return lambda: _restore(step, before, kernel)


def check(step: Sysctl, kernel: Kernel) -> list[str]:
    try:
        value = kernel.site(step.where).read_sysctl(step.key)
    except OSError as error:
        return [f"{step.key} cannot be read: {error.strerror}"] if step.required else []
    if value.split() == step.value.split() or not step.required:
        return []
    return [f"{step.key} is {value}, expected {step.value}"]


def current(step: Sysctl, kernel: Kernel) -> Sysctl | None:
    """The same key with the value it has now, None if it has none yet. Raises OSError."""
    try:
        return step.replace(value=kernel.site(step.where).read_sysctl(step.key))
    except OSError as error:
        if error.errno == errno.EIO:  # stable_secret
            return None
        raise


def _restore(step: Sysctl, value: str, kernel: Kernel) -> None:
    kernel.site(step.where).write_sysctl(step.key, value)
