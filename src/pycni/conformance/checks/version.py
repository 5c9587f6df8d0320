"""Section 2, "VERSION", and section 5, "VERSION Success"."""

from __future__ import annotations

from pycni.conformance.case import Case, expect, require
from pycni.conformance.requirement import requirement
from pycni.spec.versions import ALL

VERSION = "2 VERSION"
SUCCESS = "5 VERSION Success"


@requirement(
    "version.output", SUCCESS, "MUST",
    "VERSION answers with cniVersion and supportedVersions",
    "Plugins must output a JSON object with the following keys upon a VERSION operation",
)  # fmt: skip
def output(case: Case) -> None:
    answer = case.call("VERSION", {"cniVersion": ALL[-1]})
    expect(answer.ok, str(answer))
    document = answer.document
    expect(isinstance(document, dict), f"stdout is no JSON object: {answer}")
    found = document.get("supportedVersions")
    expect(
        isinstance(found, list) and found and all(isinstance(item, str) for item in found),
        f"supportedVersions is {found!r}",
    )
    expect(isinstance(document.get("cniVersion"), str), "there is no cniVersion")


@requirement(
    "version.parameters", VERSION, "MUST",
    "VERSION needs no parameter but CNI_COMMAND",
    "Required environment parameters: CNI_COMMAND",
)  # fmt: skip
def parameters(case: Case) -> None:
    answer = case.call("VERSION", {"cniVersion": ALL[-1]}, CNI_PATH=None)
    expect(answer.ok, str(answer))


@requirement(
    "version.echo", SUCCESS, "MUST",
    "the answer's cniVersion is the one that was asked with",
    "cniVersion: The value of cniVersion specified on input",
)  # fmt: skip
def echo(case: Case) -> None:
    wrong = {}
    for version in ALL[1:]:
        document = case.call("VERSION", {"cniVersion": version}).document
        require(isinstance(document, dict), "VERSION does not answer with an object")
        if document.get("cniVersion") != version:
            wrong[version] = document.get("cniVersion")
    answered = ", ".join(f"{given} by {found!r}" for given, found in wrong.items())
    expect(not wrong, f"the version asked with is answered: {answered}")


@requirement(
    "version.released", SUCCESS, "MUST",
    "a released version of the specification is among the supported ones",
    "supportedVersions: A list of supported specification versions",
)  # fmt: skip
def released(case: Case) -> None:
    supported = case.subject.versions
    require(supported, "VERSION gives no list, see version.output")
    expect(set(supported) & set(ALL), f"supportedVersions is {', '.join(supported)}")
