"""Runs that are stopped at a line of their log, and what that log holds."""

import json

from progdistill.training.metrics_log import MetricsLog


class Interrupted(Exception):
    pass


def interrupt_at(monkeypatch, *numbers):
    """Stops runs in place of writing these lines of metrics, counted from 1 over all runs."""
    original, count = MetricsLog.write, iter(range(1, 10_000))

    def write(self, record):
        if next(count) in numbers:
            raise Interrupted
        original(self, record)

    monkeypatch.setattr(MetricsLog, "write", write)


def lines(folder):
    """The log of a run, without how long it took."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]
