"""The results of the suite as a table, one line per check as soon as it has run: for `types try`."""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

_WIDTH = 74  # of the longest name of a check
_EMPTY = "got empty parameter set"


class Table:
    """A pytest plugin that prints a line per check, and a summary. Use it without pytest's own reports."""

    def __init__(self, what: str, *, as_json: bool) -> None:
        self._what = what
        self._as_json = as_json
        self._reports: list[Any] = []
        self._counts = {"pass": 0, "FAIL": 0, "n/a": 0}

    def pytest_collection_finish(self) -> None:
        """Print the heading."""
        if self._as_json:
            return
        print(f"Checks of {self._what} against a server that behaves as it is declared\n")
        print(f"{'check':{_WIDTH}}  result  why", flush=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Print why the checks could not be collected."""
        if report.failed:
            print(report.longreprtext, flush=True, file=sys.stderr if self._as_json else sys.stdout)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Print the line of a check after its last phase."""
        self._reports.append(report)
        if report.when != "teardown":
            return
        result = "FAIL" if any(one.failed for one in self._reports) else "pass"
        reasons = list(_reasons(self._reports))
        if any(one.skipped for one in self._reports):
            result = "n/a"
        self._counts[result] += 1
        if self._as_json:
            outcome = {"check": _check(report), "result": result.lower(), "reasons": reasons}
            print(json.dumps(outcome), flush=True)
        else:
            print(f"{_check(report):{_WIDTH}}  {result:6}  {'; '.join(reasons)}".rstrip(), flush=True)
        self._reports.clear()

    def pytest_sessionfinish(self) -> None:
        """Print the summary."""
        if self._as_json:
            return
        counts = self._counts
        print(f"\n{counts['pass']} passed, {counts['FAIL']} failed, {counts['n/a']} do not apply.")


def _check(report: Any) -> str:
    """The name of a check in words: "refreshes repeatedly (as text)"."""
    name, _, params = str(report.head_line or report.nodeid).partition("[")
    words = name.removeprefix("test_").replace("_", " ")
    variant = params.removesuffix("]").partition("-")[2]
    return f"{words} ({variant})" if variant else words


def _reasons(reports: list[Any]) -> Iterator[str]:
    violations = [one for name, value in reports[-1].user_properties if name == "violations" for one in value]
    yield from dict.fromkeys(violations)
    for report in reports:
        if report.skipped:
            reason = str(report.longrepr[2]).removeprefix("Skipped: ")
            yield "does not apply to this declaration" if reason.startswith(_EMPTY) else reason
        elif report.failed and not violations:
            message = (
                report.longrepr.reprcrash.message if hasattr(report.longrepr, "reprcrash") else report.longreprtext
            )
            yield re.sub(r"^[\w.]+\.(?=\w+: )", "", message.strip().splitlines()[0])
