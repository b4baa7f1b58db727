"""What bfloat16 does to a distillation round, and up to how many steps a round may compute in it.

    python benchmarks/precision.py --model runs/teacher/model --data cifar10.parquet --output precision.json
    python benchmarks/precision.py --network ddpm-cifar10-32 --data drawn --output precision.json

The more steps a teacher takes, the less its output changes in one, and bfloat16 has 8 bits. First the error of two of
its steps against float64, for teachers of 8 to 4096 steps, in several precisions (teacher_step_error.py). Then whole
rounds in bfloat16 and in float32 on the same data, and how far their students end from the teacher
(precision_rounds.py). Without --model a teacher is trained first. A small network says little of a large one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch

import progdistill
from drawn_images import drawn_images
from low_precision import PACKAGE, precisions
from machine import describe, one_line
from options import parsed, parser_of, positive, writer
from precision_rounds import RUNS, compare_rounds, harmless
from progdistill.core import Denoiser
from progdistill.data import ImageDataset, open_dataset, to_float
from progdistill.nets.presets import PRESETS, preset
from teacher_step_error import draw, errors

TEACHER_STEPS = tuple(2**k for k in range(3, 13))
# Of the float32 student's distance from its teacher: less than a round's own spread over seeds.
ALLOWED = 0.05
DRAWN = 8192
FEW_STEPS = 8


def dataset_of(source: str, shape: tuple[int, ...]) -> ImageDataset:
    """ "drawn" of that shape, or whatever `open_dataset` takes."""
    if source == "drawn":
        return open_dataset(drawn_images(DRAWN, shape[0], shape[1]))
    return open_dataset(source)


def teacher_of(arguments: argparse.Namespace) -> tuple[Denoiser, ImageDataset]:
    """The one in --model, or one trained here and now; and its images."""
    if arguments.model is not None:
        model = progdistill.load(arguments.model).to(arguments.device)
        return model, dataset_of(arguments.data, model.sample_shape)
    config = preset(arguments.network)
    dataset = dataset_of(arguments.data, (config.in_channels, config.sample_size, config.sample_size))
    rate = arguments.teacher_learning_rate
    print(f"training a teacher of {arguments.network} for {arguments.train_updates} updates", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = progdistill.train(
            dataset,
            folder,
            network=arguments.network,
            max_train_steps=arguments.train_updates,
            train_batch_size=arguments.batch_size,
            learning_rate=rate,
            lr_scheduler="linear",
            lr_warmup_steps=min(100, arguments.train_updates // 10),
            ema_decay=0.995,
            class_conditional=config.num_class_embeds is not None,
            device=arguments.device,
            progress=False,
        )
    return model, dataset


def step_lines(entry: dict[str, Any]) -> list[str]:
    """A teacher's step count with the error of every precision."""
    lines = []
    for name, error in entry["precisions"].items():
        start = f"{entry['teacher_steps']:>6} steps, {error['true_signal']:.1e}" if not lines else ""
        figures = "".join(f"{error[key]:>10.2g}" for key in ("output", "change", "signal", "cosine", "loss"))
        lines.append(f"{start:<22}{name:<42}{figures}")
    return lines


def round_line(entry: dict[str, Any]) -> str:
    """A round's distances in thousandths."""

    def thousandths(pair: tuple[float, float]) -> str:
        return f"{1e3 * pair[0]:>8.2f} +- {1e3 * pair[1]:<5.2f}"

    runs = entry["runs"]
    cells = [entry["teacher"], *(run["distance"] for run in runs.values())]
    cells += [run["excess"] for name, run in runs.items() if name.startswith("bfloat16")]
    return f"{2 * entry['student_steps']:>5} -> {entry['student_steps']:<6}" + " ".join(map(thousandths, cells))


def verdict(rounds: list[dict[str, Any]], run: str = "bfloat16") -> int | None:
    """The largest number of student steps up to which that run harmed no round; None if it harmed the smallest."""
    largest = None
    for entry in sorted(rounds, key=lambda entry: entry["student_steps"]):
        if run not in entry["runs"] or not harmless(entry, run, ALLOWED):
            break
        largest = entry["student_steps"]
    return largest


def summary(found: dict[str, Any]) -> list[str]:
    """Both tables and the verdict."""
    lines = [f"two teacher's steps against float64 ({found['images']} images), and how much there is to learn:"]
    lines.append(f"{'':<64}" + "".join(f"{name:>10}" for name in ("v1", "v2 - v1", "x2 - x1", "cosine", "loss")))
    for entry in found["steps"]:
        lines += step_lines(entry)
    if not found["rounds"]:
        return lines
    lines += ["", f"rounds of {found['updates']} updates: 1000 x distance from the teacher in twice the steps"]
    heads = ["teacher itself", "float32", "bfloat16", "float32, again", "two parts", "bf16 - fp32", "two - fp32"]
    lines.append(f"{'':<13}" + " ".join(f"{head:>17}" for head in heads))
    lines += map(round_line, found["rounds"])
    tried = max(entry["student_steps"] for entry in found["rounds"])
    for name, steps in found["threshold"]["student_steps"].items():
        more = ", the most that were tried" if steps == tried else ""
        upto = "not even that of the fewest steps" if steps is None else f"up to {steps} student steps{more}"
        lines.append(f"rounds that are not harmed, {name}: {upto}")
    return lines


def run(arguments: argparse.Namespace, save: Callable[[dict], None]) -> dict[str, Any]:
    """Measures and prints; `save` gets all that there is after every step count."""
    print(one_line(about := describe(arguments.device)), flush=True)
    teacher, dataset = teacher_of(arguments)
    found: dict[str, Any] = {"machine": about, "network": arguments.model or arguments.network, "data": dataset.name}
    found |= {"parameters": sum(p.numel() for p in teacher.network.parameters()), "images": arguments.images}
    found |= {"updates": arguments.updates, "batch_size": arguments.batch_size, "steps": [], "rounds": []}
    indices = torch.arange(min(arguments.images, len(dataset)))
    images, labels = dataset.batch(indices)
    images, labels = (None if t is None else t.to(arguments.device) for t in (images, labels))
    samples, models = draw(teacher, to_float(images), labels), precisions(teacher)
    for steps in arguments.teacher_steps:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            found["steps"].append({"teacher_steps": steps, "precisions": errors(models, samples, steps)})
        print("\n".join(step_lines(found["steps"][-1])), flush=True)
        save(found)
    settings = {
        "train_batch_size": arguments.batch_size,
        "updates_per_round": arguments.updates,
        "ema_decay": 0.98,
        "logging_steps": max(1, arguments.updates // 4),
        "device": arguments.device,
        "progress": False,
    }
    for steps in arguments.rounds:
        # What there is to learn shrinks as 1 / N, and AdamW's steps do not.
        rate = arguments.learning_rate * min(1.0, FEW_STEPS / steps)
        own = {**settings, "learning_rate": rate}
        found["rounds"].append(compare_rounds(teacher, dataset, steps, arguments.images, own))
        print(round_line(found["rounds"][-1]), flush=True)
        save(found)
    return found


def arguments_of(words: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--model", help="a teacher's folder; default: one is trained")
    parser.add_argument("--network", choices=list(PRESETS), help="default: ddpm-cifar10-32; on a CPU digits8")
    parser.add_argument("--data", help="as in progdistill.train, or drawn; default: digits, with ddpm-cifar10-32 drawn")
    parser.add_argument("--train-updates", type=positive, help="of the teacher; default: 1500, with --quick 5")
    parser.add_argument("--teacher-learning-rate", type=float, help="default: 8e-3 for digits8, else 4e-4")
    parser.add_argument("--teacher-steps", nargs="+", type=positive, metavar="N", help="default: 8 16 32 ... 4096")
    parser.add_argument("--rounds", nargs="*", type=positive, metavar="N", help="of students of N steps; default: some")
    parser.add_argument("--updates", type=positive, help="of a round; default: 200, with --quick 2")
    parser.add_argument("--learning-rate", type=float, help="at 8 student steps; default: 2e-3 for digits8, else 1e-4")
    parser.add_argument("--batch-size", type=positive, help="default: 64, with --quick 4")
    parser.add_argument("--images", type=positive, help="that are measured; default: 128, with --quick 4")
    arguments = parsed(parser, words)
    quick = arguments.quick
    arguments.network = arguments.network or ("digits8" if quick or arguments.device == "cpu" else "ddpm-cifar10-32")
    tiny = arguments.network == "digits8"
    defaults = {
        "data": "digits" if tiny else "drawn",
        "train_updates": 5 if quick else 1500,
        "teacher_learning_rate": 8e-3 if tiny else 4e-4,
        "teacher_steps": [8, 64] if quick else list(TEACHER_STEPS),
        "rounds": [2] if quick else [8, 16, 32, 64, 128, 256],
        "updates": 2 if quick else 200,
        "learning_rate": 2e-3 if tiny else 1e-4,
        "batch_size": 4 if quick else 64,
        "images": 4 if quick else 128,
    }
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.model is not None and arguments.data == "drawn":
        print("measuring on drawn images: name those of the model with --data", flush=True)
    odd = [steps for steps in arguments.teacher_steps if steps % 2]
    if odd:
        parser.error(f"--teacher-steps {odd[0]} is odd, and a student takes half as many; use an even number")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the benchmark."""
    arguments = arguments_of(sys.argv[1:] if words is None else words)
    torch.set_num_threads(arguments.threads)
    save = writer(arguments.output)
    found = run(arguments, save)
    names = [name for name in RUNS if name.startswith("bfloat16")]
    thresholds = {name: verdict(found["rounds"], name) for name in names}
    found["threshold"] = {"student_steps": thresholds, "allowed": ALLOWED, "bfloat16": PACKAGE}
    found["summary"] = summary(found)
    print("\n".join(["", *found["summary"]]))
    save(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
