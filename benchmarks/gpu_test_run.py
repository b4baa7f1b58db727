"""A pytest plugin for benchmarks/on_gpu.py, whose machine may lack packages that the test suite uses elsewhere.

Test files that need a missing package are skipped, with the package named. A run in which nothing passed has failed: an
extension without CUDA kernels would otherwise skip every test and look like success.
"""

from __future__ import annotations

import collections
import json
import re
from pathlib import Path

import pytest

_MISSING = re.compile(r"ModuleNotFoundError: No module named '([^'.]+)")
# Their absence is a fault of the checkout, not of the machine.
_OUR_OWN = {"progdistill", *(path.stem for path in Path(__file__).resolve().parents[1].glob("tests/*.py"))}


def pytest_addoption(parser: pytest.Parser) -> None:
    """--test-record and --cases-per-test."""
    group = parser.getgroup("tests on a GPU")
    group.addoption("--test-record", metavar="FILE", help="write counts and reasons of skips to this JSON file")
    group.addoption("--cases-per-test", type=int, metavar="N", help="run the first N cases of a parametrized test only")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Turns the failure to import a package that is not installed into a skip."""
    report = yield
    if report.outcome == "failed":
        missing = _MISSING.findall(str(report.longrepr))
        if missing and missing[-1] not in _OUR_OWN:
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"Skipped: {missing[-1]} is not installed")
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the first cases of each test function."""
    most = config.getoption("--cases-per-test")
    if most is None:
        return
    seen: collections.Counter[str] = collections.Counter()
    kept, dropped = [], []
    for item in items:
        name = item.nodeid.split("[", 1)[0]
        seen[name] += 1
        (kept if seen[name] <= most else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes the record, and makes a run that proved nothing a failed one."""
    stats = session.config.pluginmanager.get_plugin("terminalreporter").stats
    counts = {outcome: len(stats.get(outcome, [])) for outcome in ("passed", "failed", "error", "skipped")}
    reasons = collections.Counter(_reason(report) for report in stats.get("skipped", []))
    summary = [", ".join(f"{count} {outcome}" for outcome, count in counts.items())]
    summary += [f"  {count} skipped: {reason}" for reason, count in reasons.most_common()]
    if not counts["passed"]:
        summary.append("  no test passed, so nothing was shown")
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
    path = session.config.getoption("--test-record")
    if path is not None:
        record = {**counts, "reasons": dict(reasons), "summary": summary}
        Path(path).write_text(json.dumps(record, indent=1) + "\n")


def _reason(report) -> str:
    longrepr = report.longrepr
    return longrepr[2].removeprefix("Skipped: ") if isinstance(longrepr, tuple) else str(longrepr)
