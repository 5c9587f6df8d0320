"""A kernel setting (`plan.steps.Sysctl`)."""

from __future__ import annotations

import errno

from pycni.kernel.sysctl import swapped, with_slashes
from pycni.spec.jsontext import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Sysctl
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: Sysctl, kernel: HostAndSandbox) -> Undo | None:
    try:
        before = kernel.netns(step.where).write_sysctl(step.key, step.value)
    except OSError as error:
        if step.required:
            _name(error, step)
            raise
        return None
    if before == step.value:
        return None
    return lambda: _restore(step, before, kernel)


def check(step: Sysctl, kernel: HostAndSandbox) -> list[str]:
    if not step.lasting:
        return []
    try:
        value = kernel.netns(step.where).read_sysctl(step.key)
    except OSError as error:
        if error.errno == errno.EACCES or not step.required:
            return []  # what can only be written says nothing
        return [f"{step.key} cannot be read: {error.strerror}"]
    if value.split() == step.value.split():
        return []
    if not (step.required or _is_ours(step, value, kernel)):
        return []
    return [f"{step.key} is {value}, expected {step.value}"]


def current(step: Sysctl, kernel: HostAndSandbox) -> Sysctl | None:
    """The same key with the value it has now, None if it has none yet. Raises OSError."""
    try:
        return step.replace(value=kernel.netns(step.where).read_sysctl(step.key))
    except OSError as error:
        if error.errno in (errno.EIO, errno.EACCES):  # stable_secret; route/flush
            return None
        raise


def _is_ours(step: Sysctl, value: str, kernel: HostAndSandbox) -> bool:
    """Whether pycni's ADD had set a value that is another one now.

    Another project's plugin need not have set it, and a later plugin of the attachment may have set
    the other one: tuning notes what it has applied.
    """
    identity = kernel.identity
    if identity is None or not identity.has_made_links:
        return False
    from pycni.steps import ownership  # nothing else of a setting needs it

    if not ownership.is_in_place(kernel, identity):
        return False
    for path in (path for part in identity.parts for path in part.files):
        try:
            with open(path, "rb") as file:
                applied = loads(file.read()).get("applied", {}).get("sysctl", {})
            if applied.get(step.key, "").split() == value.split():
                return False
        except (AttributeError, OSError, ValueError):
            continue  # of another kind
    return True


def _name(error: OSError, step: Sysctl) -> None:
    """Have a refusal name a setting, and not a file."""
    key = swapped(with_slashes(step.key))
    error.filename = f"sysctl {key}={step.value}"
    if error.errno == errno.ENOENT:
        error.way_out = (  # type: ignore[attr-defined]
            f"the kernel has no such setting, or no such value for it: see `sysctl {key}`, and "
            "whether a module is to be loaded"
        )
    elif error.errno in (errno.EINVAL, errno.ERANGE):
        error.way_out = (  # type: ignore[attr-defined]
            f"the kernel does not take this value; `sysctl {key}` shows the one that it has"
        )


def _restore(step: Sysctl, value: str, kernel: HostAndSandbox) -> None:
    kernel.netns(step.where).write_sysctl(step.key, value)
