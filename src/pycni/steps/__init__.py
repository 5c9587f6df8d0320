"""How each kind of step is made, checked and removed: one module a kind, of the step's own name.

A module has some of these functions (`pycni.steps.handler` has their types); `executor` calls them,
and `repair`, which is the executor's verb of that name.

    apply(step, kernel) -> Undo | None      make it; return how to take it back, None if unchanged
    check(step, kernel) -> list[str]        what differs from the step, a sentence each; [] if sound
    remove(step, kernel) -> None            remove it; what is missing is no error
    repair(step, kernel) -> None            make it again over what is left; by default `apply`
    repairable(step, kernel) -> list[str]   what `repair` puts back though CHECK can do without
    current(step, kernel) -> Step | None    the step with the value that the kernel has now
    collect(kernel, owners) -> None         remove what these attachments left, by their marks

`kernel` is a `pycni.steps.namespaces.HostAndSandbox`: the host and the sandbox, each with a netlink
socket.
"""
