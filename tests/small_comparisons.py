"""A comparison that takes a second, as flags and as keywords."""

TRAINING = {"train_batch_size": 4, "device": "cpu", "progress": False}
SMALL = [*["--num-images", "6", "--seeds", "2", "--train-batch-size", "4", "--device", "cpu", "--no-progress"]]
SMALL += [*["--d-ode-scale", "2", "--d-ode-batch-size", "4", "--sfd-iterations", "2", "--sfd-max-steps", "2"]]
SMALL += [*["--pd-rounds", "2", "--pd-updates-per-round", "2"]]
METHODS = ["ddim", "heun", "dpmpp_3m@logsnr", "d_ode", "sfd", "pd"]


def settings(folder, **others):
    """Those of SMALL, as keywords."""
    small = {"num_images": 6, "seeds": 2, "d_ode_scale": 2, "d_ode_batch_size": 4, "sfd_iterations": 2}
    small |= {"sfd_max_steps": 2, "pd_rounds": 2, "pd_updates_per_round": 2, "steps": (1, 2, 3), **TRAINING}
    small["features"] = str(folder / "out" / "classifier.safetensors")
    return {"teacher": str(folder / "teacher"), "data": str(folder / "images.npz"), **small, **others}
