"""The unrolled sampler as a torch.export program, and as a .pt2 file without pickles."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from progdistill.core import Denoiser
from progdistill.core.files import replace_atomic
from progdistill.sampling.arguments import student_for
from progdistill.sampling.exported import TOLERANCE, Exported, check_target, checked_difference, description
from progdistill.sampling.unrolled import UnrolledSampler

DESCRIPTION_FILE = "progdistill.json"
_PLAIN_NAMESPACES = ("aten", "prim", "prims")


def export_program(
    model: Denoiser,
    steps: int,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    clip: float | None = None,
    output_type: str = "float",
    tolerance: float = TOLERANCE,
) -> Exported:
    """Writes the N-step sampler as one torch.export program: forward(noise[, class_labels]) -> images.

    `torch.export.load(path).module()` runs it without progdistill, on the device that the model is on now. The file
    holds no pickles (torch saves example inputs as one; they are left out) and, as extra file "progdistill.json", what
    it was made of. It is read back and compared with `ddim` before it takes its name.

    Args:
        model, steps, clip, output_type: see `UnrolledSampler`.
        path: the file, usually .pt2.
        batch_size: a fixed one; None: any.
        tolerance: largest deviation from our own sampler's images, in their range [-1, 1].

    Raises:
        ValueError: what `UnrolledSampler` refuses; a network that torch.export cannot trace, that calls custom
            operators, or whose weights torch would pickle.
        RuntimeError: images beyond the tolerance; an older file is as it was.
        OSError: from the disk.
    """
    target = check_target(path, batch_size, tolerance)
    student = student_for(model, steps)
    sampler = UnrolledSampler(student, steps, clip=clip, output_type=output_type)
    program = traced_program(sampler, batch_size)
    program.example_inputs = None
    extra_files = {DESCRIPTION_FILE: json.dumps(description(sampler, batch_size))}
    with replace_atomic(target) as temporary:
        with open(temporary, "wb") as file:
            torch.export.save(program, file, extra_files=extra_files)
        _check_no_pickles(temporary)
        difference = checked_difference(_reader(temporary, student.device), sampler, student, batch_size, tolerance)
    return Exported(target, difference)


def traced_program(sampler: UnrolledSampler, batch_size: int | None = None) -> ExportedProgram:
    """torch.export's program of a sampler, for a fixed batch size or (None) for any.

    Raises:
        ValueError: torch.export cannot follow the network, or it calls operators that only come with some library.
    """
    # torch.export takes sizes 0 and 1 of an example for constants.
    arguments = sampler.example_inputs(2 if batch_size is None else batch_size)
    shapes = None
    if batch_size is None:
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} for _ in arguments)
    program = _trace(sampler, arguments, shapes)
    for graph in _graphs(program):
        for node in graph.graph.nodes:
            # Lines of source with the paths of this machine: nobody's business in a file that is handed on.
            node.meta.pop("stack_trace", None)
    custom = _custom_operators(program)
    if custom:
        raise ValueError(
            f"the network calls {', '.join(custom)}, which only programs that import its library can run; use plain "
            "torch operations"
        )
    return program


def _graphs(program: ExportedProgram) -> list[torch.fx.GraphModule]:
    return [part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]


def _custom_operators(program: ExportedProgram) -> list[str]:
    """Names of the operators in a program that are not torch's own."""
    targets = {node.target for graph in _graphs(program) for node in graph.graph.nodes}
    operators = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    return sorted(str(operator) for operator in operators if operator.namespace not in _PLAIN_NAMESPACES)


def _trace(sampler: UnrolledSampler, arguments: tuple[Tensor, ...], shapes) -> ExportedProgram:
    try:
        return torch.export.export(sampler, arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch has no common class for what goes wrong here
        first = error
    try:
        # Reads the network's bytecode, and so understands len(z), which strict=False takes for a number.
        return torch.export.export(sampler, arguments, dynamic_shapes=shapes, strict=True)
    except Exception:
        reason = str(first).strip().split("\n", 1)[0]
    advice = "" if shapes is None else "; a fixed batch_size may be possible"
    raise ValueError(
        f"torch.export cannot turn a sampler of this {type(sampler.network).__name__} into one graph: {reason}{advice}"
    ) from first


def _reader(path: Path, device: torch.device):
    with open(path, "rb") as file:
        module = torch.export.load(file).module()
    return lambda *inputs: module(*(tensor.to(device) for tensor in inputs)).cpu()


def _check_no_pickles(path: Path) -> None:
    """Raises ValueError for a .pt2 archive with pickled parts: weights of tensor subclasses, another torch's habits."""
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
        pickled = [entry.filename for entry in entries if entry.filename.endswith((".pt", ".pkl"))]
        for entry in entries:
            if entry.filename.endswith("_config.json"):
                payloads = json.loads(archive.read(entry)).get("config", {})
                pickled += [name for name, payload in payloads.items() if payload.get("use_pickle")]
    if pickled:
        raise ValueError(
            f"torch {torch.__version__} would store {', '.join(pickled[:5])} as pickles, which can run code when they "
            "are read; no file was written. Use plain tensors as weights, or export to ONNX"
        )
