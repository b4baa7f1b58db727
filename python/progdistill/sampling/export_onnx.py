"""The unrolled sampler as an ONNX file."""

from __future__ import annotations

import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.core.files import flush_file, replace_atomic
from progdistill.sampling.arguments import student_for
from progdistill.sampling.export_program import traced_program
from progdistill.sampling.exported import TOLERANCE, Exported, check_target, checked_difference, description_as_strings
from progdistill.sampling.unrolled import UnrolledSampler

INPUT_NAMES = ("noise", "class_labels")
OUTPUT_NAME = "images"
# A protobuf message ends at 2 GiB; the graph itself takes a part of it.
_MOST_BYTES_INSIDE = 2**31 - 2**27


def export_onnx(
    model: Denoiser,
    steps: int,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    clip: float | None = None,
    output_type: str = "float",
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Writes the N-step sampler as one ONNX graph, float32: inputs noise (and class_labels), output images.

    The weights are in the graph once, whatever the number of steps. The file holds them too; beyond 2 GiB, where
    protobuf ends, they lie in a file of their own beside it, whose name the graph knows. With onnxruntime installed the
    file is run on the CPU and its images compared with `ddim`'s before it takes its name.

    Args:
        model, steps, clip, output_type: see `UnrolledSampler`.
        path: the file, usually .onnx.
        batch_size: a fixed one; None: an axis "batch" of any size.
        opset: version of ONNX's operators; None: what this torch prefers (20 in torch 2.13).
        tolerance: largest deviation from our own sampler's images, in their range [-1, 1].

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: what `UnrolledSampler` and torch.export refuse; operations that ONNX has not; another opset.
        RuntimeError: images beyond the tolerance; an older file is as it was.
        OSError: from the disk.
    """
    target = check_target(path, batch_size, tolerance)
    _require_exporter()
    student = student_for(model, steps)
    sampler = UnrolledSampler(student, steps, clip=clip, output_type=output_type).cpu()
    graph = _converted(sampler, batch_size, opset)
    graph.metadata_props.update(description_as_strings(sampler, batch_size))
    with _weights_file(graph, target) as weights, replace_atomic(target) as temporary:
        _save(graph, temporary, weights)
        difference = _compared(temporary, sampler, student, batch_size, tolerance)
    if difference is None:
        warnings.warn(
            f'onnxruntime is not installed, so nobody has looked at the images of {target}: pip install "progdistill'
            '[onnx]" and export again',
            stacklevel=2,
        )
    return Exported(target, difference)


def _require_exporter() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError('ONNX files need onnx and onnxscript: pip install "progdistill[onnx]"') from error


def _converted(sampler: UnrolledSampler, batch_size: int | None, opset: int | None) -> Any:
    """The graph as an onnx_ir.Model."""
    program = traced_program(sampler, batch_size)
    names = INPUT_NAMES[: 1 if sampler.num_classes is None else 2]
    try:
        with _quiet():
            model = torch.onnx.export(
                program,
                dynamo=True,
                input_names=names,
                output_names=[OUTPUT_NAME],
                dynamic_shapes=None if batch_size is not None else {name: {0: "batch"} for name in names},
                opset_version=opset,
                optimize=False,
                verbose=False,
            ).model
            _simplify(model)
    except Exception as error:  # torch has no common class for what goes wrong here
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(
            f"torch.onnx cannot write a sampler of this {type(sampler.network).__name__}: {reason}"
        ) from error
    if opset not in (None, model.opset_imports[""]):
        raise ValueError(
            f"opset is {opset}, which torch.onnx cannot write here (it wrote {model.opset_imports['']}); use None for "
            "its own choice, or a version that the installed torch and onnx know"
        )
    return model


def _simplify(model: Any) -> None:
    """Folds constants and drops what is there twice or not used.

    torch.onnx.export(optimize=True) does this too, but between it looks for patterns in a time that grows with the
    square of the number of nodes: minutes for four steps of a U-Net, for nothing that a runtime would not do itself.
    """
    from onnx_ir import passes
    from onnx_ir.passes import common
    from onnxscript import optimizer

    common.InlinePass()(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        # torch notes where every node comes from: most of a small file.
        common.ClearMetadataAndDocStringPass(),
    )(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks about packages that play no part here, and about the exporter's own use of torch."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _weights_file(model: Any, target: Path) -> Iterator[Path | None]:
    """Where weights too large for the file go: a new name, because an older file may still refer to its own."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size <= _MOST_BYTES_INSIDE:
        yield None
        return
    weights = target.with_name(f"{target.name}.{secrets.token_hex(4)}.data")
    try:
        yield weights
    except BaseException:
        weights.unlink(missing_ok=True)
        raise


def _save(model: Any, path: Path, weights: Path | None) -> None:
    import onnx_ir

    onnx_ir.save(model, path, external_data=None if weights is None else weights.name)
    if weights is not None:
        flush_file(weights)


def _compared(
    path: Path, sampler: UnrolledSampler, student: Denoiser, batch_size: int | None, tolerance: float
) -> float | None:
    """The difference that onnxruntime on the CPU makes; None without it."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in zip(INPUT_NAMES, inputs, strict=False)}
        return torch.from_numpy(session.run([OUTPUT_NAME], feed)[0])

    return checked_difference(run, sampler, student, batch_size, tolerance)
