"""Sections 1 and 2, "Parameters" and "Errors": what a plugin must refuse, and how."""

from __future__ import annotations

from pycni.conformance.case import Attachment, Case, exists, expect, require
from pycni.conformance.requirement import CHAINED, INTERFACE, Broken, requirement
from pycni.conformance.subject import Answer

PARAMETERS = "2 Parameters"
ERRORS = "2 Errors"
FORMAT = "1 Configuration format"
CODES = "5 Error"

_NAMES = "Must start with an alphanumeric character, optionally followed by ..."
_LISTED = "The error message must contain the names of invalid variables."


def _refused(answer: Answer, what: str) -> Answer:
    expect(not answer.ok, f"{what} was accepted: {answer}")
    return answer


def _failing(case: Case) -> Answer:
    """A call that cannot but fail."""
    return _refused(case.call("ADD", "this is not JSON", **case.attachment().environ()), "no JSON")


@requirement(
    "error.exit-code", ERRORS, "MUST",
    "a failure ends with an exit code other than 0",
    "A plugin must exit with a return code of 0 on success, and non-zero on failure.",
)  # fmt: skip
def exit_code(case: Case) -> None:
    answer = _failing(case)
    expect(answer.code > 0, f"it did not exit by itself: {answer}")


@requirement(
    "error.object", ERRORS, "SHOULD",
    "a failure is reported as an error object on stdout, with a numeric code and a msg",
    'If the plugin encounters an error, it should output an "error" result structure.',
)  # fmt: skip
def error_object(case: Case) -> None:
    answer = _failing(case)
    document = answer.document
    expect(isinstance(document, dict), f"stdout is no JSON object: {answer}")
    code, message = document.get("code"), document.get("msg")
    expect(isinstance(code, int) and not isinstance(code, bool), f"code is {code!r}")
    expect(isinstance(message, str) and message, f"msg is {message!r}")
    expect(isinstance(document.get("details", ""), str), f"details is no text: {answer}")


@requirement(
    "error.cni-version", CODES, "SHOULD",
    "an error object names the protocol version in use",
    "Plugins should output a JSON object with the following keys ...: cniVersion",
)  # fmt: skip
def error_version(case: Case) -> None:
    attachment = case.attachment()
    answer = _refused(attachment.run("ADD", {"name": "/bad/"}), "a bad network name")
    document = answer.document
    require(isinstance(document, dict), "there is no error object")
    found = document.get("cniVersion")
    expect(found == attachment.version, f"cniVersion is {found!r}, not {attachment.version!r}")


@requirement(
    "error.code-decode", CODES, "SHOULD",
    "stdin that is not JSON, or nothing at all, is refused with code 6",
    "Failed to decode content.",
)  # fmt: skip
def decode_code(case: Case) -> None:
    attachment = case.attachment()
    for stdin, what in (("{", "half a JSON object"), ("", "empty stdin"), ("[]", "a JSON list")):
        answer = _refused(case.call("ADD", stdin, **attachment.environ()), what)
        _expect_code(answer, 6, what)


@requirement(
    "error.code-version", CODES, "SHOULD",
    "a cniVersion that the plugin does not know is refused with code 1",
    "Incompatible CNI version",
)  # fmt: skip
def version_code(case: Case) -> None:
    attachment = case.attachment()
    answer = _refused(attachment.run("ADD", {"cniVersion": "99.0.0"}), "cniVersion 99.0.0")
    if case.makes_link:
        expect(not exists(attachment), f"the interface was made all the same, and {answer}")
    _expect_code(answer, 1, "cniVersion 99.0.0")


def _expect_code(answer: Answer, code: int, what: str) -> None:
    document = answer.document
    require(isinstance(document, dict) and "code" in document, "there is no error object")
    expect(document["code"] == code, f"for {what}, {answer}; expected code {code}")


_NEEDED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}


@requirement(
    "parameters.required", PARAMETERS, "MUST",
    "a call that lacks a parameter its operation requires fails",
    "Required environment parameters: ...",
)  # fmt: skip
def required(case: Case) -> None:
    _each_missing(case, lambda answer, name: _refused(answer, f"{answer.command} without {name}"))


@requirement(
    "parameters.named", CODES, "MUST",
    "the error for missing or invalid parameters names them",
    _LISTED,
)  # fmt: skip
def named(case: Case) -> None:
    def names_it(answer: Answer, name: str) -> None:
        document = answer.document
        if isinstance(document, dict) and document.get("code") == 4:
            said = f"{document.get('msg')} {document.get('details')}"
            expect(name in said, f"without {name}, {answer}")

    _each_missing(case, names_it)


def _each_missing(case: Case, judge: object) -> None:
    assert callable(judge)
    attachment = case.attachment()
    attachment.try_add()
    for command, names in _NEEDED.items():
        if case.subject.can(command):
            for name in names:
                judge(attachment.run(command, **{name: None}), name)


@requirement(
    "parameters.command", PARAMETERS, "MUST",
    "an operation that the specification does not have is an error",
    "CNI_COMMAND: indicates the desired operation; ADD, DEL, CHECK, GC, or VERSION.",
)  # fmt: skip
def command(case: Case) -> None:
    for name in ("REMOVE", "add"):
        _refused(case.attachment(ord(name[0]) % 7).run(name), f"CNI_COMMAND={name}")


@requirement(
    "parameters.container-id", PARAMETERS, "MUST",
    "a container id that is not letters, digits, '_', '.', '-' is refused",
    _NAMES,
)  # fmt: skip
def container_id(case: Case) -> None:
    attachment = case.attachment()
    for bad in ("../escape", "-dash", ".dot", "with space", "new\nline", "semi;colon"):
        answer = attachment.run("ADD", CNI_CONTAINERID=bad)
        _refused(answer, f"CNI_CONTAINERID={bad!r}")


@requirement(
    "parameters.ifname", PARAMETERS, "MUST",
    "an interface name that cannot be used is an error, not another interface",
    "if the plugin is unable to use this interface name it must return an error",
    kinds=(INTERFACE, CHAINED),
)  # fmt: skip
def ifname(case: Case) -> None:
    attachment = case.attachment()
    for bad in ("a-name-too-long-for-linux", "..", "with/slash", "with space"):
        _refused(attachment.run("ADD", CNI_IFNAME=bad), f"CNI_IFNAME={bad!r}")


@requirement(
    "parameters.netns", PARAMETERS, "MUST",
    "a namespace that is not there, or is none, is an error of ADD",
    "CNI_NETNS: A reference to the container's \"isolation domain\".",
    kinds=(INTERFACE, CHAINED),
)  # fmt: skip
def netns(case: Case) -> None:
    attachment = case.attachment()
    for bad in ("/run/netns/not-there", "/etc/passwd"):
        answer = attachment.run("ADD", CNI_NETNS=bad)
        if case.kind == CHAINED and answer.ok:
            # One whose work is on the host alone need not open it.
            continue
        _refused(answer, f"CNI_NETNS={bad}")


@requirement(
    "parameters.optional", "2 CNI operations", "MUST",
    "optional parameters may be missing: ADD and DEL work without CNI_ARGS, DEL without CNI_NETNS",
    "Optional environment parameters: ...",
)  # fmt: skip
def optional(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    answer = attachment.delete(CNI_NETNS=None)
    expect(answer.ok, f"without CNI_NETNS, {answer}")


@requirement(
    "parameters.path-optional", "2 CNI operations", "MUST",
    "CNI_PATH is optional where nothing is delegated",
    "Optional environment parameters: CNI_ARGS, CNI_PATH",
)  # fmt: skip
def path_optional(case: Case) -> None:
    require(not case.subject.delegates, "the configuration delegates, which takes CNI_PATH")
    attachment = case.attachment()
    answer = attachment.run("ADD", CNI_PATH=None)
    expect(answer.ok, f"without CNI_PATH, {answer}")


@requirement(
    "config.name", FORMAT, "MUST",
    "a configuration without a network name, or with a bad one, is refused",
    "name (string): ... Must start with an alphanumeric character",
)  # fmt: skip
def network_name(case: Case) -> None:
    attachment = case.attachment()
    for bad in (None, "", "../escape", "-dash", "with space"):
        answer = attachment.run("ADD", {"name": bad})
        _refused(answer, f"the network name {bad!r}")


@requirement(
    "config.dns", "1 Plugin configuration objects", "SHOULD",
    "a plugin that answers with DNS takes the configuration's",
    "Plugins that consume any of these configuration keys should respect their intended semantics.",
    kinds=(INTERFACE,),
)  # fmt: skip
def dns(case: Case) -> None:
    wanted = {"nameservers": ["10.9.9.9", "10.9.9.8"], "search": ["example.net"]}
    attachment: Attachment = case.attachment(config={"dns": wanted})
    found = attachment.add().get("dns")
    require(found, "the plugin does not answer with DNS")
    if found != wanted:
        raise Broken(f"the configuration's dns is {wanted}, the result's is {found}")
