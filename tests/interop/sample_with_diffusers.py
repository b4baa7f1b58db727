"""A user of an exported folder: diffusers alone. Arguments: a JSON list of [folder, steps, labels or null, .npy file].

Every line of it must do for diffusers 0.24.
"""

import json
import sys

sys.modules["progdistill"] = None  # importing it would be an error

import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402, F401  (diffusers 0.24 takes it for granted, not all safetensors do)
import torch  # noqa: E402
from diffusers import DiffusionPipeline, __version__  # noqa: E402

torch.set_num_threads(1)
for folder, steps, labels, file in json.loads(sys.argv[1]):
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {} if labels is None else {"class_labels": labels}
    images = pipeline(
        batch_size=3,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
        **arguments,
    ).images
    np.save(file, images)
print(__version__)
