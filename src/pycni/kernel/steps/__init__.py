"""How each kind of step is made, checked and removed: one module a kind, of the step's own name.

A module has some of these functions; the executor (`pycni.kernel.executor`) calls them by name.

    apply(step, kernel) -> Undo | None      make it; return how to take it back, None if unchanged
    check(step, kernel) -> list[str]        what differs from the step, a sentence each; [] if sound
    remove(step, kernel) -> None            remove it; what is missing is no error
    collect(kernel, network, keep) -> None  remove what the network left for attachments not in keep

`kernel` is a `pycni.kernel.context.Kernel`: the host and the sandbox, each with a netlink socket.
"""
