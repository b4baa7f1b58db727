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
    """Defines `progdistill::name` for every device and returns what calls it, with positional arguments.

    `Library.define` and `impl` are used rather than `custom_op`, whose launch costs two to five times as much. Calls
    that no part of torch has to know of go to the implementation directly: the dispatcher costs more than the rest.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    kinds = [str(argument.type) for argument in operator._schema.arguments]
    single = [place for place, kind in enumerate(kinds) if kind == "Tensor"]
    lists = [place for place, kind in enumerate(kinds) if kind == "List[Tensor]"]

    def call(*arguments):
        if torch.compiler.is_compiling() or _is_watched():
            return operator(*arguments)
        differentiate = torch.is_grad_enabled()
        for place in single:
            if _needs_dispatcher(arguments[place], differentiate):
                return operator(*arguments)
        for place in lists:
            for tensor in arguments[place]:
                if _needs_dispatcher(tensor, differentiate):
                    return operator(*arguments)
        return implementation(*arguments)

    return call


def _is_watched() -> bool:
    """Whether a mode (fake tensors, tracing to a graph), a transform of torch.func or torch.jit.trace is at work."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
    )


def _needs_dispatcher(tensor: torch.Tensor, differentiate: bool) -> bool:
    """Whether a tensor's operations are to be recorded, or are a subclass's affair."""
    return (differentiate and tensor.requires_grad) or type(tensor) not in _PLAIN


_PLAIN = (torch.Tensor, torch.nn.Parameter)
