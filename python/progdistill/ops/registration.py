"""Registration of the operations with torch.library, so that autograd, torch.compile and export see them."""

from __future__ import annotations

from collections.abc import Callable

import torch

NAMESPACE = "progdistill"
# The operators live as long as this object.
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def register(
    schema: str,
    implementation: Callable,
    fake: Callable,
    *,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> Callable:
    """Defines `progdistill::name` for every device and returns the callable operator.

    `Library.define` and `impl` are used rather than `custom_op`, whose launch costs two to five times as much.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default
