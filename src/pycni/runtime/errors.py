"""What can go wrong on the runtime's side; all are `CNIError`: code, message and details."""

from __future__ import annotations

from collections.abc import Sequence

from pycni.spec.errors import INVALID_CONFIG, TRY_AGAIN_LATER, UNKNOWN, CNIError, join_errors
from pycni.spec.schema import Fault


class FaultInFile(Fault):
    """A fault of a configuration, and where: `file` as it was named, "" for none; `line` from 1."""

    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = ":".join(part for part in (self.file, str(self.line or "")) if part)
        return f"{place}: {super().__str__()}" if place else super().__str__()


class ConfigError(CNIError):
    """A network configuration that cannot be used (code 7). `faults` has all that is wrong with it,
    each with file, line, key and what was expected; `pycni lint` shows them too.
    """

    def __init__(self, faults: Sequence[FaultInFile], what: str = "configuration list") -> None:
        expected = [fault.expected for fault in faults if fault.expected]
        super().__init__(
            INVALID_CONFIG,
            f"error parsing {what}: {'; '.join(map(str, faults))}",
            "; ".join(dict.fromkeys(expected)),
        )
        self.faults = tuple(faults)


class NetworkNotFound(CNIError):
    """No configuration of this name in the directories (code 7).

    `skipped` has those files there that could not be read: the wanted one may be among them.
    """

    def __init__(self, message: str, details: str, skipped: Sequence[ConfigError] = ()) -> None:
        super().__init__(INVALID_CONFIG, message, details)
        self.skipped = tuple(skipped)

    @classmethod
    def nothing_in(cls, directories: Sequence[str]) -> NetworkNotFound:
        """That there is no configuration at all."""
        return cls(
            f"no net configurations found in {':'.join(directories)}",
            "expected .conflist, .conf or .json files there; 'pycni init' writes one",
        )


class PluginError(CNIError):
    """A plugin refused, failed, or could not be run.

    code, message, details: the plugin's own, the message with the plugin's name before it where the
    operation has several; plugin_type: which one; command: doing what; stderr: what its process
    wrote there. After ADD everything is undone that could be: details say what could not, and
    `Network.delete` tries again.
    """

    def __init__(self, cause: CNIError, plugin_type: str, command: str, prefix: str = "") -> None:
        super().__init__(cause.code, prefix + cause.message, cause.details)
        self.plugin_type = plugin_type
        self.command = command
        self.stderr: str = getattr(cause, "stderr", "")
        self.__cause__ = cause


class SeveralErrors(CNIError):
    """An operation that goes on after a failure met more than one: all are in `errors`."""

    def __init__(self, errors: Sequence[CNIError]) -> None:
        joined = join_errors(list(errors))
        super().__init__(joined.code, joined.message, joined.details)
        self.errors = tuple(errors)


class Canceled(CNIError):
    """The caller gave up (code 0). What the operation had done is undone."""

    def __init__(self) -> None:
        super().__init__(UNKNOWN, "canceled", "the caller gave up before the operation was done")


class TimedOut(Canceled):
    """The operation's `timeout` was over (code 11). What an ADD had done is undone.

    The message is what a plugin's failure led to, where one was killed for it.
    """

    def __init__(self, seconds: float, failure: str = "") -> None:
        reason = f"timed out after {seconds:g} s"
        way_out = "try again, or give it more time"
        details = f"{reason}; {way_out}" if failure else way_out
        CNIError.__init__(self, TRY_AGAIN_LATER, failure or reason, details)


def one_error(errors: Sequence[CNIError]) -> CNIError:
    """The error itself if it is the only one, else one for all."""
    return errors[0] if len(errors) == 1 else SeveralErrors(errors)
