"""Findings as JSON and as JUnit XML, and what they come to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

from pycni.conformance.checks import requirements
from pycni.conformance.requirement import Finding
from pycni.conformance.subject import Subject

SPECIFICATION = "1.1.0"


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in the order of the specification."""
    ids = [one.id for one in requirements()]
    return sorted(findings, key=lambda finding: ids.index(finding.requirement.id))


def conforms(findings: Iterable[Finding], *, strict: bool = False) -> bool:
    """Whether no MUST failed; strict: nor any SHOULD. Without one that passed, nothing is shown."""
    passed = False
    for finding in findings:
        passed = passed or finding.outcome == "passed"
        if finding.outcome == "failed" and (strict or finding.requirement.keyword == "MUST"):
            return False
    return passed


def summary(findings: Sequence[Finding]) -> str:
    """The numbers, in one line."""
    counts = Counter(finding.outcome for finding in findings)
    broken = Counter(
        finding.requirement.keyword for finding in findings if finding.outcome == "failed"
    )
    text = f"{counts['passed']} passed, {counts['failed']} failed"
    if broken:
        text += f" ({broken['MUST']} MUST, {broken['SHOULD']} SHOULD)"
    return f"{text}, {counts['skipped']} skipped"


def to_json(subject: Subject, findings: Sequence[Finding]) -> str:
    """The report as a JSON object."""
    document: dict[str, Any] = {
        "plugin": subject.type,
        "executable": str(subject.path),
        "kind": subject.kind,
        "specification": SPECIFICATION,
        "triedWith": subject.version,
        "supportedVersions": list(subject.versions),
        "conforms": conforms(findings),
        "findings": [
            {
                "id": finding.requirement.id,
                "section": finding.requirement.section,
                "keyword": finding.requirement.keyword,
                "requirement": finding.requirement.text,
                "sentence": finding.requirement.sentence,
                "outcome": finding.outcome,
                **({"seen": finding.seen} if finding.seen else {}),
                "seconds": round(finding.seconds, 3),
            }
            for finding in findings
        ],
    }
    return json.dumps(document, indent=2)


def to_junit(subject: Subject, findings: Sequence[Finding]) -> str:
    """The report as JUnit XML, for CI systems. A SHOULD that is not kept is a failure too."""
    counts = Counter(finding.outcome for finding in findings)
    suite = ElementTree.Element(
        "testsuite",
        name=f"CNI {SPECIFICATION}: {subject.type}",
        tests=str(len(findings)),
        failures=str(counts["failed"]),
        skipped=str(counts["skipped"]),
        errors="0",
        time=f"{sum(finding.seconds for finding in findings):.3f}",
    )
    for finding in findings:
        one = finding.requirement
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{subject.type}.{one.section}",
            name=one.id,
            time=f"{finding.seconds:.3f}",
        )
        if finding.outcome == "failed":
            failure = ElementTree.SubElement(
                case, "failure", type=one.keyword, message=_printable(finding.seen)
            )
            failure.text = _printable(f"{one.keyword}: {one.text}\n\u201c{one.sentence}\u201d")
        elif finding.outcome == "skipped":
            ElementTree.SubElement(case, "skipped", message=_printable(finding.seen))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}"
                   for sign in text)  # fmt: skip
