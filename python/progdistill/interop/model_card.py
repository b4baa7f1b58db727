"""The README.md of a saved model: how to sample it, how it was made. Recorded facts alone, no guesses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import yaml

from progdistill import __version__
from progdistill.core.denoiser import Denoiser
from progdistill.interop.card_text import escaped, listed, number
from progdistill.interop.ddim_config import level_count, starts_at_zero_snr
from progdistill.interop.folders import CARD_MARK

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_IMAGES = 4
# What the pipelines take where they are told nothing.
_DEFAULT_STEPS = {True: 1, False: 50}
_RECIPES = {
    "train": "training",
    "distill": "distillation",
    "convert": "conversion",
    "sfd": "SFD",
    "guidance": "guidance",
    None: "as it was found",
}


def model_card(
    denoiser: Denoiser, obstacle: str | None, *, repo_id: str | None = None, dtype: torch.dtype = torch.float32
) -> str:
    """Markdown with YAML front matter as the Hugging Face hub reads it.

    `obstacle`: why plain diffusers cannot sample the model, None if it can; `repo_id`: the name that the model will
    have on the hub, None to call it ".", the folder itself; `dtype`: of the stored weights.

    Raises ValueError for a `repo_id` that is none.
    """
    if repo_id is not None and not _HUB_ID.fullmatch(repo_id):
        raise ValueError(f"repo_id is {repo_id!r}; use a name on the hub, your-name/your-model")
    sections = [
        _front_matter(denoiser, obstacle),
        f"<!-- {CARD_MARK} -->",
        f"# {_title(denoiser)}",
        _summary(denoiser),
        "## Sampling",
        _sampling_here(denoiser, obstacle) if obstacle else _sampling(denoiser, repo_id),
        "## How it was made",
        _facts(denoiser, dtype),
        _rounds(denoiser),
        "## Licence",
        "None is stated: whoever publishes the model must know under which terms its data and its teacher came, and "
        "write the licence here and into the `license` field above.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def history(denoiser: Denoiser) -> Iterator[dict[str, Any]]:
    """What provenance says of the model, of its teacher, of that one's teacher, ..."""
    facts: Any = denoiser.provenance
    while isinstance(facts, dict):
        yield facts
        facts = facts.get("teacher")


def _front_matter(denoiser: Denoiser, obstacle: str | None) -> str:
    unconditional = denoiser.num_classes is None
    tags = ["diffusers"] if obstacle is None else []
    tags.append("unconditional-image-generation" if unconditional else "class-conditional")
    tags += ["progressive-distillation"] * _is_student(denoiser)
    fields: dict[str, Any] = {"library_name": "diffusers" if obstacle is None else "progdistill"}
    if unconditional:
        fields["pipeline_tag"] = "unconditional-image-generation"
    fields |= {"tags": tags, "license": "unknown"}
    base = [facts["source"] for facts in history(denoiser) if _on_hub(facts)]
    if base:
        fields["base_model"] = base[0]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _on_hub(facts: dict[str, Any]) -> bool:
    """Whether they name a model that was fetched from the hub, and not one of somebody's folders."""
    source = facts.get("source")
    return "revision" in facts and isinstance(source, str) and _HUB_ID.fullmatch(source) is not None


def _is_student(denoiser: Denoiser) -> bool:
    return denoiser.valid_steps is not None or any(facts.get("recipe") == "distill" for facts in history(denoiser))


def _title(denoiser: Denoiser) -> str:
    steps = denoiser.valid_steps
    kind = "Diffusion model" if steps is None else f"Diffusion model in {listed(steps[::-1])} step{_s(steps)}"
    data = _data(denoiser)
    return f"{kind}: {data}" if data else kind


def _s(steps: tuple[int, ...]) -> str:
    return "" if steps == (1,) else "s"


def _data(denoiser: Denoiser) -> str:
    names = (facts["data"] for facts in history(denoiser) if isinstance(facts.get("data"), str))
    return escaped(next(names, ""))


def _summary(denoiser: Denoiser) -> str:
    channels, height, width = denoiser.sample_shape
    images = f"images of {height} x {width} pixels and {channels} channel{'s' * (channels > 1)}"
    classes = "" if denoiser.num_classes is None else f", of {denoiser.num_classes} classes"
    if not _is_student(denoiser):
        return f"Generates {images}{classes}."
    if denoiser.provenance.get("recipe") == "sfd":
        return (
            f"Generates {images}{classes}, with few network calls an image: a student of SFD "
            "([Zhou et al., NeurIPS 2024](https://arxiv.org/abs/2409.19681)), which learned to be after each of its "
            "steps where a solver of many steps leads its teacher."
        )
    return (
        f"Generates {images}{classes}, with few network calls an image: a student of progressive distillation "
        "([Salimans & Ho, ICLR 2022](https://arxiv.org/abs/2202.00512)), which learned to do in one step what its "
        "teacher does in several."
    )


def _sampling_here(denoiser: Denoiser, obstacle: str) -> str:
    steps = min(denoiser.valid_steps or (64,))
    labels = "" if denoiser.num_classes is None else f", class_labels={_labels(denoiser.num_classes)}"
    if denoiser.guidance_range is not None:
        labels += f", guidance_scale={denoiser.guidance_range[1]:g}"
    return (
        f"Plain diffusers would sample it wrongly: {obstacle}. With progdistill:\n\n```python\n"
        "import progdistill\n"
        f'images = progdistill.sample(progdistill.load("."), steps={steps}{labels})\n```'
    )


def _labels(num_classes: int) -> list[int]:
    return list(range(min(_IMAGES, num_classes)))


def _sampling(denoiser: Denoiser, repo_id: str | None) -> str:
    where = "" if repo_id else '\n\n`"."` is this folder; from elsewhere, name its path, or its name on the hub.'
    count, classes = level_count(denoiser), denoiser.num_classes
    steps = min(denoiser.valid_steps) if denoiser.valid_steps else max(n for n in range(1, 65) if count % n == 0)
    arguments = f"batch_size={_IMAGES}, num_inference_steps={steps}"
    if classes is not None:
        labels = _labels(classes)
        arguments = f"batch_size={len(labels)}, num_inference_steps={steps}, class_labels={labels}"
    if denoiser.sample_shape[0] not in (1, 3):
        arguments += ', output_type="np"'
    return (
        "```python\nfrom diffusers import DiffusionPipeline\n"
        f'images = DiffusionPipeline.from_pretrained("{repo_id or "."}")({arguments}).images\n```'
        f"{where}\n\n{_steps(denoiser, count)}\n{_schedulers(denoiser)}"
    )


def _steps(denoiser: Denoiser, count: int) -> str:
    default, valid = _DEFAULT_STEPS[denoiser.num_classes is not None], denoiser.valid_steps
    beside = (
        f"{default} does not divide the schedule's {count} levels: diffusers then goes down {count // default} levels "
        f"from steps that lie {count / default:g} apart, and so leaves its own grid"
    )
    if valid is None:
        number_of = [str(n) for n in range(1, count + 1) if count % n == 0]
        text = f"* `num_inference_steps`: a divisor of {count} ({', '.join(number_of)})."
        return text if count % default == 0 else f"{text} Not the pipeline's default: {beside}."
    text = (
        f"* `num_inference_steps`: {listed(valid[::-1])}, nothing else. The network has learned the noise levels of "
        "these grids alone; at others its predictions mean nothing."
    )
    if default in valid:
        return text
    text += f" Always pass it: the pipeline's default is {default}"
    return f"{text}." if count % default == 0 else f"{text}, and {beside}."


def _schedulers(denoiser: Denoiser) -> str:
    text = (
        "* The scheduler that is saved here, DDIM with `eta=0` (its default). "
        + ("The student has learned exactly these steps. " if _is_student(denoiser) else "")
        + "With few steps others draw other images: DDPM, LCM, TCD and `eta` above 0 add noise at each step; Heun, "
        "DPM-Solver++ of second order, UniPC, DEIS and PNDM correct a step by predictions at other levels."
    )
    if starts_at_zero_snr(denoiser):
        text += " Sampling starts from pure noise (SNR 0), where some of them divide by zero."
    return text


def _facts(denoiser: Denoiser, dtype: torch.dtype) -> str:
    network, chain = denoiser.network, list(history(denoiser))
    source = next((facts["source"] for facts in chain if isinstance(facts.get("source"), str)), None)
    weights = sum(parameter.numel() for parameter in network.parameters())
    stored = {torch.float32: "float32", torch.float16: "float16"}[dtype]
    facts = {
        "Data": _data(denoiser),
        "First teacher": "" if source is None else escaped(source),
        "Network": f"`UNet2DModel`, {number(weights)} parameters, stored as {stored}",
        "Prediction": f"`{denoiser.prediction_type}`",
        "Guidance": _guidance(denoiser),
        "Schedule": f"{denoiser.schedule.kind.replace('_', ' ')}, {level_count(denoiser)} levels",
        "Made with": f"progdistill {__version__}",
    }
    return "\n".join(f"* {name}: {value}" for name, value in facts.items() if value)


def _guidance(denoiser: Denoiser) -> str:
    """Of classifier-free guidance, scales counted as diffusers does: 1 is none."""
    if denoiser.guidance_range is not None:
        low, high = denoiser.guidance_range
        return f"the scale is an input of the network, {low:g} to {high:g} (1: none); one call a step"
    if denoiser.unconditional_label is not None:
        return f"any scale, two calls a step; label {denoiser.unconditional_label} stands for no class"
    if (scale := number(denoiser.provenance.get("guidance_scale"))) != "":
        return f"scale {scale}, fixed in the weights"
    return ""


def _with_error(facts: dict[str, Any], name: str) -> str:
    value, error = number(facts.get(name)), number(facts.get(f"{name}_error"))
    return f"{value} ± {error}" if value and error else value


def _text(facts: dict[str, Any], name: str) -> str:
    return escaped(facts[name]) if isinstance(facts.get(name), str) else number(facts.get(name))


def _first(facts: dict[str, Any], *names: str) -> Any:
    return next((facts[name] for name in names if name in facts), None)


_COLUMNS = {
    "steps": lambda facts: number(facts.get("steps")),
    "updates": lambda facts: number(facts.get("updates")),
    "seconds": lambda facts: number(facts.get("seconds")),
    "loss": lambda facts: _text(facts, "loss_type"),
    "weighting": lambda facts: _text(facts, "weighting"),
    "last loss": lambda facts: number(facts.get("loss")),
    "teacher's steps": lambda facts: number(_first(facts, "teacher_steps", "sampling_steps", "teacher_calls")),
    "distance to the teacher": lambda facts: (
        _with_error(facts, "student_distance")
        or _with_error(facts, "conversion_distance")
        or _with_error(facts, "guidance_distance")
    ),
    "teacher in as few steps": lambda facts: _with_error(facts, "teacher_distance"),
}


def _round(facts: dict[str, Any]) -> str:
    recipe = facts.get("recipe")
    name = _RECIPES.get(recipe, recipe) if isinstance(recipe, (str, type(None))) else "?"
    if recipe == "convert" and "from" in facts and "to" in facts:
        name = f"{name}, {facts['from']} to {facts['to']}"
    return escaped(str(name))


def _rounds(denoiser: Denoiser) -> str:
    rounds = list(history(denoiser))[::-1]
    cells = {title: [cell(facts) for facts in rounds] for title, cell in _COLUMNS.items()}
    known = {title: column for title, column in cells.items() if any(column)}
    if not known:
        return ""
    rows = [["", *known], ["---"] * (1 + len(known))]
    rows += [[_round(facts), *(column[i] for column in known.values())] for i, facts in enumerate(rounds)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if "distance to the teacher" not in known:
        return table
    return (
        f"{table}\n\nDistances: root-mean-square difference of pixels (range 2) from the images that the round's "
        "teacher draws in its own steps from the same noise, mean and its standard error."
    )
