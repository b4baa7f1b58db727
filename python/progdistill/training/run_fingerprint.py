"""Which settings a resumed run must have in common with its beginning."""

from __future__ import annotations

import dataclasses
from typing import Any

from progdistill.training.config import ConvertConfig, DataConfig, LoopConfig

# Younger than the first runs, which resume: they count where they are given.
_LATER = {
    "zero_snr": "truncate",
    "conversion_updates": None,
    "label_dropout": 0.0,
    "guidance_range": None,
    "guidance_updates": None,
}
# Younger than the first conversions, too.
_LATER_STILL = {"optimizer": "adamw", "muon_momentum": 0.95, "learning_rate_at": {}, "first_teacher_substeps": None}


def fingerprint(config: LoopConfig) -> dict[str, Any]:
    """The settings that decide a run's result, JSON-ready; a resumed run must have the same."""
    free = {
        "output_dir",
        "overwrite",
        "progress",
        "checkpoints_total_limit",
        "checkpointing_steps",
        "device",
        "compile",
        "cuda_graph",
        "report_to",
    }
    if isinstance(config, DataConfig):  # as _LATER
        free |= {f.name for f in dataclasses.fields(DataConfig)} - set(config.reading_options())
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in free}
    later = _LATER_STILL if isinstance(config, ConvertConfig) else _LATER | _LATER_STILL
    for name, default in later.items():
        if fields.get(name) == default:
            fields.pop(name, None)
    for name in {"updates_at", "learning_rate_at"} & fields.keys():
        fields[name] = {str(k): v for k, v in fields[name].items()}
    return fields
