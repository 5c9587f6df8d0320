"""The error object of the protocol, and its codes (SPEC 1.1.0, section "Error").

Every failure that reaches a caller is a `CNIError`: a runtime sees it as JSON on stdout, a Python
program as an exception with the same three parts. `message` says what is wrong with which thing,
`details` says what was expected or what to do.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UNKNOWN = 0
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
INVALID_NETNS = 8  # used by the reference, not in the specification's table
TRY_AGAIN_LATER = 11
UNAVAILABLE = 50
UNAVAILABLE_LIMITED = 51
INTERNAL = 999  # the reference's code for whatever a plugin did not classify

# 100 and above are the plugins' own. Ours mean the same in every plugin:
KERNEL_REFUSED = 100
ALREADY_EXISTS = 101
CHECK_FAILED = 102
ADDRESS_UNAVAILABLE = 103

# What the codes mean, in words for people.
MEANINGS = {
    INCOMPATIBLE_VERSION: "incompatible version",
    UNSUPPORTED_FIELD: "unsupported field",
    UNKNOWN_CONTAINER: "unknown container",
    INVALID_ENVIRONMENT: "invalid parameters",
    IO_FAILURE: "input or output failed",
    DECODING_FAILURE: "cannot be decoded",
    INVALID_CONFIG: "invalid network configuration",
    INVALID_NETNS: "invalid network namespace",
    TRY_AGAIN_LATER: "try again later",
    UNAVAILABLE: "not available",
    UNAVAILABLE_LIMITED: "not available, running containers may suffer",
    KERNEL_REFUSED: "refused by the kernel",
    ALREADY_EXISTS: "exists already",
    CHECK_FAILED: "not as it was left",
    ADDRESS_UNAVAILABLE: "no address available",
    INTERNAL: "internal error",
}

# The kernel's errors where a process or the machine has run out of a resource: they say nothing
# about the thing that was asked for.
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN)

# The details of every error that comes of missing rights.
NEEDS_ROOT = "the plugin needs the rights of root (CAP_NET_ADMIN, CAP_SYS_ADMIN) on this host"


class CNIError(Exception):
    """What a plugin answers in place of a result.

    code: a number of the table above; message: short, names the thing and its value;
    details: what was expected and the way out, may be empty.
    """

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(code, message, details)
        self.code = code
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return f"{self.message}; {self.details}" if self.details else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """For `pickle` and `copy`, which otherwise call a subclass with what its base keeps."""
        return _restored, (type(self), self.args, self.__dict__, self.__cause__)

    def to_json(self, version: str = "") -> dict[str, int | str]:
        """The error object; version: that of the specification it is written in, as cniVersion."""
        document: dict[str, int | str] = {"cniVersion": version} if version else {}
        document.update(code=self.code, msg=self.message)
        if self.details:
            document["details"] = self.details
        return document

    def with_context(self, what: str) -> CNIError:
        """The same error, its message prefixed with what was going on."""
        return CNIError(self.code, f"{what}: {self.message}", self.details)


def _restored(
    kind: type[CNIError],
    arguments: tuple[Any, ...],
    values: dict[str, Any],
    cause: BaseException | None,
) -> CNIError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(values)
    error.__cause__ = cause
    return error


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error is a shortage, and says nothing about the thing that was looked at."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in SHORTAGES:
            return True
        error = error.__cause__ or error.__context__
    return False


def short_of(error: OSError) -> CNIError:
    """A shortage as an error (code 11)."""
    where = f"{error.filename}: " if error.filename else ""
    return CNIError(
        TRY_AGAIN_LATER,
        f"{where}{error.strerror}",
        "this process, or the machine, has no more of that: see its limits (ulimit -n), try again",
    )


def invalid_config(message: str, details: str = "") -> CNIError:
    """A network configuration that breaks a rule (code 7)."""
    return CNIError(INVALID_CONFIG, message, details)


def join_errors(errors: list[CNIError]) -> CNIError:
    """Several errors as one, for clean-ups that go on after a failure.

    The first error's code counts, since the others may follow from it.
    """
    if len(errors) == 1:
        return errors[0]
    # Several errors often have the same details.
    details = dict.fromkeys(error.details for error in errors if error.details)
    return CNIError(
        errors[0].code, "; ".join(error.message for error in errors), "; ".join(details)
    )
