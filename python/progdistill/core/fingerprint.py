"""What a model computes, as a short string that changes when its weights or its description do."""

from __future__ import annotations

import hashlib
import json

import torch

from progdistill.core.denoiser import Denoiser


def model_fingerprint(model: Denoiser) -> str:
    """32 hexadecimal digits (half a SHA-256) over the weights and what the Denoiser knows of the network.

    Names, shapes, dtypes and values of parameters and buffers count, and prediction type, schedule, time map, sample
    shape, number of classes, unconditional label, guidance scales and sampling plans; provenance, kept students
    and the device do not.
    """
    description = {
        "prediction_type": model.prediction_type,
        "schedule": model.schedule.to_dict(),
        "time_map": model.time_map.to_dict(),
        "sample_shape": list(model.sample_shape),
        "num_classes": model.num_classes,
    }
    # Where there are none they are left out: fingerprints that were kept before these existed stay what they are.
    younger = {
        "unconditional_label": model.unconditional_label,
        "guidance_range": model.guidance_range,
        "sampling_plans": {steps: plan.to_dict() for steps, plan in model.sampling_plans.items()} or None,
    }
    description |= {name: value for name, value in younger.items() if value is not None}
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, for NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
