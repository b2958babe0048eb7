"""`megarl doctor`: what was found, what is missing, what that costs, how to install it."""

from __future__ import annotations

import sys

from megarl import native
from megarl.runtime.inventory import Finding, inventory, machine


def doctor() -> int:
    """Print the findings; returns 1 where something is missing that nothing runs without."""
    findings = inventory(native_cpu=native.available(), native_cuda=native.cuda_available())
    sys.stdout.write(report(findings, machine()))
    return 1 if any(f.required and f.found is None for f in findings) else 0


def report(findings: list[Finding], machine_line: str) -> str:
    """The text of the report."""
    width = max(len(finding.name) for finding in findings)
    lines = [machine_line, "", "found"]
    lines += [f"  {f.name:<{width}}  {f.found}" for f in findings if f.found is not None]
    missing = [finding for finding in findings if finding.found is None]
    if missing:
        lines += ["", "missing"]
    for finding in missing:
        need = "REQUIRED: " if finding.required else ""
        lines.append(f"  {finding.name:<{width}}  {need}{finding.cost}")
        lines.append(f"  {'':<{width}}  -> {finding.cure}")
    return "\n".join(lines) + "\n"
