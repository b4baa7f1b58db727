"""Random operands of the drawing and distilling operations, in every shape and layout that kernels tell apart."""

import torch

SHAPES = [(3, 5), (1, 1), (2, 3, 7, 5), (2, 3, 2, 4, 4), (2, 1, 3, 3), (2, 5, 9, 7), (5, 4, 40, 40)]
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def images(count, shape, prediction_type="v_prediction", dtype=torch.float32, seed=0):
    """Standard normal states, or outputs of a prediction type for them."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1] * (2 if prediction_type == "sample_epsilon" else 1)
    shape = (shape[0], channels, *shape[2:])
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def angles(samples, steps):
    """Falling angles (steps + 1, samples), those of the first sample down to exactly 0, away from pi / 2."""
    start = torch.linspace(0.05, 1.5, max(samples, 1), dtype=torch.float64)[:samples]
    end = 0.3 * start
    end[:1] = 0.0
    return torch.lerp(start, end, torch.linspace(0, 1, steps + 1, dtype=torch.float64).unsqueeze(1))
