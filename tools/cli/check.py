"""`refledger build --check`: the findings as text or JSON, and the exit code."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import ChecksFailed
from engine.frontend.check import Report, check_dockerfile
from engine.frontend.checks import Finding
from engine.frontend.scope import FrontendOptions
from engine.graph import ResolvedImage
from tools.cli.failure import excerpt
from tools.looking import passing_resolver
from tools.text import clean


def check(text: str, options: FrontendOptions, *, as_json: bool, offline: bool) -> None:
    """Print what is found. As in docker findings alone are no failure. Raises DockerfileError when the Dockerfile
    cannot be built, ChecksFailed when it says `# check=error=true`."""

    async def resolve(wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
        async with passing_resolver(offline=offline) as resolver:
            return await resolver.resolve(wanted)

    report = asyncio.run(check_dockerfile(text, options, resolve))
    sys.stdout.write(json.dumps(_facts(report), indent=2) + "\n" if as_json else _text(report))
    sys.stdout.flush()
    if report.error is not None:
        raise report.error
    if report.failing:
        raise ChecksFailed(report.failing, options.filename, report.findings[0].lines[0])


def _text(report: Report) -> str:
    count = len(report.findings)
    end = {0: "no warnings found.", 1: "1 warning has been found!"}.get(count, f"{count} warnings have been found!")
    rows = [f"Check complete, {end}"] if count or report.error is None else []
    for found in report.findings:
        title = f"WARNING: {found.rule}" + (f" - {found.url}" if found.url else "")
        rows += ["", title, clean(f"{found.message}: {found.hint}"), *_excerpt(report, found.lines, found)]
    if report.unasked:
        images = ", ".join(report.unasked)
        rows += ["", f"Variables that {clean(images)} may set were not checked: it could not be asked"]
    if report.error is not None:
        lines = (report.error.line, report.error.end)
        rows += ["", *excerpt(report.source.text, report.source.filename, lines, report.error.mark)]
    return "".join(f"{row}\n" for row in rows)


def _excerpt(report: Report, lines: tuple[int, int], found: Finding) -> list[str]:
    mark = report.source.find(lines, found.word)
    return excerpt(report.source.text, report.source.filename, lines, mark)


def _facts(report: Report) -> dict[str, Any]:
    findings = [
        {
            "rule": found.rule, "file": report.source.filename, "line": found.lines[0], "end": found.lines[1],
            "excerpt": report.source.excerpt(found.lines), "message": found.message, "hint": found.hint,
            "url": found.url,
        }
        for found in report.findings
    ]  # fmt: skip
    error = None
    if report.error is not None:
        error = {
            "message": report.error.what, "file": report.source.filename, "line": report.error.line,
            "end": report.error.end, "excerpt": report.error.excerpt, "hint": report.error.hint,
        }  # fmt: skip
    return {"findings": findings, "error": error, "unasked": list(report.unasked)}
