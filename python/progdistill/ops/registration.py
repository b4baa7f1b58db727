"""Registration of the operations with torch.library, so that autograd, torch.compile and export see them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
    hands_on: Callable | None = None,
) -> Callable:
    """Defines `progdistill::name` for every device and returns what calls it, with positional arguments.

    `Library.define` and `impl` are used rather than `custom_op`, whose launch costs two to five times as much. Calls
    that nobody watches (torch.compile, modes, transforms, subclasses) go to the implementation directly, or to an
    autograd function where gradients are wanted: the dispatcher costs more than all the rest.

    An operator may not return what it was given; its call may. `hands_on` says, from the call's arguments, which
    tensors of them (or None) follow the results. The autograd function has views of them as results: it is for
    `setup_context` to mark those that want no gradient, and `backward` is given what reaches the others from elsewhere,
    to add it on its way. Where the dispatcher is at work they are the arguments themselves, and autograd adds.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    kinds = [str(argument.type) for argument in operator._schema.arguments]
    single = [place for place, kind in enumerate(kinds) if kind in ("Tensor", "Optional[Tensor]")]
    lists = [place for place, kind in enumerate(kinds) if kind == "List[Tensor]"]

    recorded = None if backward is None else _autograd_function(implementation, setup_context, backward, hands_on)
    operator, implementation = _handing_on(operator, hands_on), _handing_on(implementation, hands_on)

    def call(*arguments):
        if _is_watched():
            return operator(*arguments)
        wanted = False
        for place in single:  # written out: this is a tenth of a small call's time
            tensor = arguments[place]
            if tensor is not None:
                if type(tensor) not in _PLAIN:
                    return operator(*arguments)
                wanted = wanted or tensor.requires_grad
        listed = [tensor for place in lists for tensor in arguments[place]] if lists else ()
        if listed and any(type(tensor) not in _PLAIN for tensor in listed):
            return operator(*arguments)
        if recorded is not None and torch.is_grad_enabled():
            if listed and any(tensor.requires_grad for tensor in listed):
                return operator(*arguments)  # an autograd function takes a list for a constant
            if wanted:
                return recorded(*arguments)
        return implementation(*arguments)

    return call


_PLAIN = (torch.Tensor, torch.nn.Parameter)  # other subclasses want to see the operator


def is_plain_call(tensor: Tensor) -> bool:
    """Whether torch need not see what is computed with a tensor: nobody watches, no gradient is wanted."""
    return type(tensor) in _PLAIN and not torch.is_grad_enabled() and not _is_watched()


def _is_watched() -> bool:
    """Whether torch.compile, a mode (fake tensors, tracing to a graph), a transform of torch.func or torch.jit.trace is
    at work."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
    )


def _handing_on(function: Callable, hands_on: Callable | None) -> Callable:
    """The function, its results followed by what is handed on of its arguments."""
    if hands_on is None:
        return function
    return lambda *arguments: (*function(*arguments), *hands_on(*arguments))


def _autograd_function(
    implementation: Callable, setup_context: Callable, backward: Callable, hands_on: Callable | None
) -> Callable:
    """The operator's autograd without the dispatcher."""

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            results = implementation(*arguments)
            if hands_on is None:
                return results
            # Views, for what a function returns as it was given it may not save.
            return (*results, *(t if t is None else t.view_as(t) for t in hands_on(*arguments)))

        @staticmethod
        def backward(ctx, *grads):
            # Operators want a list of gradients for a list of tensors; here the list is one argument, a constant.
            return tuple(None if isinstance(grad, list) else grad for grad in backward(ctx, *grads))

    Direct.setup_context = staticmethod(setup_context)
    return Direct.apply
