"""What an audit returns: findings with their evidence, and what could not be checked."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""From the mildest: worth knowing; probably costs accuracy; keeps the model from learning."""

_WIDTH = 100


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        check: A short name, the same in every audit: `"clamped-outputs"`.
        severity: `"info"`, `"warning"` or `"error"`.
        what: What was found, in a sentence.
        evidence: What was measured: numbers, names and lists of them.
        why: Why it matters.
        fix: The change to make.
    """

    check: str
    severity: Severity
    what: str
    evidence: Mapping[str, Any]
    why: str
    fix: str

    def as_dict(self) -> dict[str, Any]:
        """The same for `json.dumps`."""
        return asdict(self) | {"evidence": _finite(self.evidence)}

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {_number(value)}" for name, value in self.evidence.items())
        lines = [("what", self.what), ("measured", shown), ("why", self.why), ("fix", self.fix)]
        body = [_paragraph(name, text) for name, text in lines if text]
        return "\n".join([f"{self.severity:<8} {self.check}", *body])


class NotCheckedError(Exception):
    """A check lacks what it needs; the message says what."""


Found = Iterator[Finding]
"""What a check yields."""


@dataclass(frozen=True)
class AuditReport:
    """What an audit came to; `print` shows it as a table.

    Attributes:
        findings: The worst first.
        passed: Names of the checks that ran and found nothing.
        not_checked: Names of the checks that could not run, each with the reason.
    """

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    not_checked: Mapping[str, str]

    def of(self, *severities: Severity) -> list[Finding]:
        """The findings of some severities."""
        return [finding for finding in self.findings if finding.severity in severities]

    @property
    def worst(self) -> Severity | None:
        """The highest severity found, or None."""
        return self.findings[0].severity if self.findings else None

    def as_dict(self) -> dict[str, Any]:
        """The same for `json.dumps`."""
        return {
            "worst": self.worst,
            "findings": [finding.as_dict() for finding in self.findings],
            "passed": list(self.passed),
            "not_checked": dict(self.not_checked),
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self.of(severity))} {severity}" for severity in reversed(SEVERITIES))
        parts = [*map(str, self.findings), f"found: {counts}; {len(self.passed)} checks found nothing"]
        if self.not_checked:
            reasons = (f"  {name}: {reason}" for name, reason in self.not_checked.items())
            parts.append("\n".join(["not checked, because of what is missing:", *reasons]))
        return "\n\n".join(parts)


Check = Callable[[Any], Found]


def run_checks(checks: list[Check], probe: object) -> AuditReport:
    """Run every check on a set-up."""
    findings: list[Finding] = []
    passed: list[str] = []
    not_checked: dict[str, str] = {}
    for check in checks:
        name = check.__name__.replace("_", "-")
        try:
            found = list(check(probe))
        except NotCheckedError as missing:
            not_checked[name] = str(missing)
            continue
        findings += found
        if not found:
            passed.append(name)
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return AuditReport(tuple(findings), tuple(passed), not_checked)


def _paragraph(name: str, text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=f"  {name:<9}", subsequent_indent=" " * 11)


def _finite(value: Any) -> Any:
    """The same with NaN and infinity, which JSON has not, as text."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        shown = [_number(one) for one in value[:6]] + (["..."] if len(value) > 6 else [])
        return f"[{', '.join(shown)}]"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_number(one)}" for name, one in value.items())
    return str(value)
