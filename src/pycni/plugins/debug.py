"""debug: writes down each call, and runs commands in the container's namespace. For tests.

Chained behind other plugins it shows what a runtime hands on; it changes nothing in the result.
"""

from __future__ import annotations

from pycni.kernel import namespace, process
from pycni.sdk.execute import write_or_give_up
from pycni.sdk.plugin import Plugin
from pycni.spec.config import NetConf
from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.spec.jsontext import dumps
from pycni.spec.result import Result, encode_result
from pycni.spec.schema import ListOf, Text, field
from pycni.state.append import append_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.sdk.request import Request

LINE = "-" * 22
_DEFAULT_PATH = "/bin:/usr/bin"  # os.defpath

Hooks = tuple[tuple[str, ...], ...]


class DebugConfig(NetConf):
    """The keys of debug; a hook is a command as a list of words."""

    output: str = field(
        "cniOutput",
        Text(),
        "",
        doc="file that each call is appended to, in `/var/log/pycni` or where the administrator "
        "allows",
    )
    add_hooks: Hooks = field(
        "addHooks",
        ListOf(ListOf(Text())),
        (),
        doc="commands, as lists of words, to run in the container's namespace at ADD",
    )
    del_hooks: Hooks = field("delHooks", ListOf(ListOf(Text())), (), doc="the same at DEL")
    check_hooks: Hooks = field("checkHooks", ListOf(ListOf(Text())), (), doc="the same at CHECK")


class Debug(Plugin):
    """A witness in a list of plugins."""

    type: ClassVar[str] = "debug"
    config = DebugConfig

    def add(self, request: Request) -> Result:
        config = self.config.decode(request.document)
        previous = request.prev_result or Result()
        encode_result(previous, request.version)  # before anything is run
        record(request, "CmdAdd", config.output)
        run_hooks(request, config.add_hooks)
        return previous

    def check(self, request: Request) -> None:
        config = self.config.decode(request.document)
        record(request, "CmdCheck", config.output)
        run_hooks(request, config.check_hooks)

    def delete(self, request: Request) -> None:
        config = self.config.decode(request.document)
        record(request, "CmdDel", config.output)
        run_hooks(request, config.del_hooks)


def record(request: Request, command: str, path: str) -> None:
    """Append a call to a file. Raises CNIError."""
    path = request.allowed_path("debug.cniOutput", path)
    if not path:
        return
    lines = (
        command,
        f"ContainerID: {request.container_id}",
        f"Netns: {request.netns}",
        f"IfName: {request.ifname}",
        f"Args: {request.args}",
        f"Path: {':'.join(request.path)}",
        f"StdinData: {dumps(request.document)}",
        LINE,
    )
    try:
        append_file(path, "".join(f"{line}\n" for line in lines).encode(), 0o644)
    except OSError as error:
        raise CNIError(
            IO_FAILURE, f"cannot write {path}: {error.strerror}", 'it is "cniOutput"'
        ) from None


def run_hooks(request: Request, hooks: Hooks) -> None:
    """Run commands in the container's namespace; what fails is only reported on stderr.

    Raises CNIError (code 7) for a program that is not allowed, before any is run.
    """
    found = [(hook, program) for hook in hooks if hook and (program := _program(request, hook[0]))]
    if not found:
        return
    try:
        if request.netns_fd is not None:
            space = namespace.from_fd(request.netns_fd)
        else:
            space = namespace.open_path(request.netns)
    except OSError as error:
        write_or_give_up(request.stderr, f"hooks are not run: {error}\n".encode())
        return
    with space, space.enter():
        for hook, program in found:
            _run(request, hook, program)


def _program(request: Request, program: str) -> str:
    """The program of a hook, "" for one that is not to be run. Raises CNIError (code 7)."""
    if "/" not in program:
        found = process.find(program, request.environ.get("PATH", _DEFAULT_PATH))
        if not found:
            write_or_give_up(request.stderr, f"ERR: {program}: no such program\n".encode())
            return ""
        program = found
    return request.allowed_path("debug.hooks", program)


def _run(request: Request, hook: tuple[str, ...], program: str) -> None:
    try:
        code, stdout, stderr = process.run([program, *hook[1:]], env=request.environ)
    except OSError as error:
        write_or_give_up(request.stderr, f"ERR: {' '.join(hook)}: {error}\n".encode())
        return
    write_or_give_up(request.stderr, b"OUTPUT: " + stdout + stderr)
    if code:
        write_or_give_up(request.stderr, f"ERR: {' '.join(hook)}: exit status {code}\n".encode())


plugin = Debug()
