"""Parquet files of encoded images, as Hugging Face `datasets` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from progdistill.data.cache_size import cache_bytes
from progdistill.data.cells import Cells
from progdistill.data.encoded import EncodedStore
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.labels import class_labels
from progdistill.data.resize import Resize
from progdistill.data.splits import check_one_split
from progdistill.data.workers import with_progress

_IMAGE_COLUMNS = ("image", "img", "images")
_LABEL_COLUMNS = ("label", "labels")
_BATCH_ROWS = 256


def open_parquet(
    files: Sequence[Path], name: str, image_column: str | None, label_column: str | None, resize: Resize | None
) -> ImageDataset:
    """The images of one or more parquet files: the rows in order, the files as given.

    The image column holds encoded images: a struct with a field "bytes" (Hugging Face) or plain binary. It is
    `image_column`, or the only such column, or that named "image", "img" or "images". Labels are
    `label_column`, or "label" or "labels" if there is one. Encoded images beyond the cache are copied to a
    temporary file (in $TMPDIR), because a row of a parquet file cannot be reached without decoding its whole
    group.

    Raises:
        ImportError: pyarrow is not installed.
        KeyError: no such column; the message lists those there are.
        ValueError: unreadable files or rows, several splits in one set, images of different sizes.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('reading parquet files needs pyarrow: pip install "progdistill[data]"') from error
    check_one_split(files, name)
    cells = Cells(cache_bytes())
    labels: list[Any] = []
    num_classes = 0
    for file in files:
        cells.start_file(file)
        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                schema = table.schema_arrow
                columns = _choose_columns(file, schema, image_column, label_column)
                num_classes = max(num_classes, _declared_classes(schema, columns[1:]))
                rows = with_progress(_rows(table, *columns), table.metadata.num_rows, f"reading {file.name}")
                for encoded, label in rows:
                    cells.append(encoded)
                    labels.append(label)
        except (pyarrow.ArrowException, OSError, UnicodeError) as error:
            raise ValueError(f"cannot read the parquet file {file}: {error}") from error
    if not labels:
        raise ValueError(f"{name} has no rows")
    cells.seal()
    classes = class_labels(labels, len(labels), name, num_classes)
    return ImageDataset(EncodedStore(cells, name, resize), classes, name)


def _rows(table: Any, image_column: str, label_column: str | None = None) -> Iterator[tuple[bytes | None, Any]]:
    columns = [image_column] if label_column is None else [image_column, label_column]
    for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
        images = batch.column(image_column)
        if hasattr(images, "flatten") and hasattr(images.type, "get_field_index"):
            # flatten(), unlike field(), lets a null row hide its bytes.
            images = images.flatten()[images.type.get_field_index("bytes")]
        labels = [None] * len(batch) if label_column is None else batch.column(label_column).to_pylist()
        yield from zip(images.to_pylist(), labels, strict=True)


def _choose_columns(file: Path, schema: Any, image_column: str | None, label_column: str | None) -> list[str]:
    """The image column and, if there is one, the label column."""
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    for option, wanted in (("image_column", image_column), ("label_column", label_column)):
        if wanted is not None and wanted not in schema.names:
            raise KeyError(f"{file} has no column {wanted!r} for {option}; its columns: {found}")
    encoded = [field.name for field in schema if _holds_images(field.type)]
    if image_column is None:
        usual = [name for name in _IMAGE_COLUMNS if name in encoded]
        if not usual and len(encoded) != 1:
            raise KeyError(
                f"{file} has {len(encoded)} columns that may hold images (binary, or a struct with bytes); "
                f"its columns: {found}; name one with image_column="
            )
        image_column = usual[0] if usual else encoded[0]
    elif image_column not in encoded:
        raise ValueError(
            f"column {image_column!r} of {file} is {schema.field(image_column).type}, but encoded images are "
            f"binary or a struct with bytes; its columns: {found}"
        )
    label_column = label_column or next((name for name in _LABEL_COLUMNS if name in schema.names), None)
    return [image_column] if label_column is None else [image_column, label_column]


def _holds_images(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _declared_classes(schema: Any, label_column: list[str]) -> int:
    """How many class names Hugging Face's metadata list for the label column; 0 if they list none."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return len(features[label_column[0]]["names"])
    except (KeyError, IndexError, TypeError, ValueError):
        return 0
