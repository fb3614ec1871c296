"""Operators of torch.library whose cost is paid only where somebody looks: torch.compile, dispatch modes and transforms
see an operator, everything else calls its body, or an autograd.Function around it (20 to 50 us less a call).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Body = Callable[..., Any]


class Operator:
    """A function of tensors that mutates nothing and returns nothing it was given, as `plait::name`."""

    def __init__(self, name: str, body: Body) -> None:
        self._body = body
        self._op = torch.library.custom_op(name, mutates_args=())(body)
        self.register_fake = self._op.register_fake
        self._function: Any = None

    def register_autograd(self, differentiate: Body, *, setup_context: Body) -> None:
        """As torch.library's: setup_context(ctx, inputs, output), differentiate(ctx, *gradients), which may be None."""
        self._op.register_autograd(differentiate, setup_context=setup_context)
        self._function = _function(self._body, differentiate, setup_context)

    def __call__(self, *inputs: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_plain(inputs):
            return self._op(*inputs)
        if self._function is None or not torch.is_grad_enabled():
            return self._body(*inputs)
        differentiable = any(isinstance(given, Tensor) and given.requires_grad for given in inputs)
        return (self._function.apply if differentiable else self._body)(*inputs)


def operator(name: str) -> Callable[[Body], Operator]:
    """@operator("plait::name") in the place of torch.library.custom_op. The body's annotations are its schema."""
    return lambda body: Operator(name, body)


def _is_plain(inputs: tuple[Any, ...]) -> bool:
    """Whether nobody watches: no dispatch mode, no functorch transform, no subclass of Tensor."""
    core: Any = torch._C
    if core._len_torch_dispatch_stack() or core._functorch.peek_interpreter_stack() is not None:
        return False
    return all(type(given) in (Tensor, nn.Parameter) or not isinstance(given, Tensor) for given in inputs)


def _function(body: Body, differentiate: Body, setup_context: Body) -> type[torch.autograd.Function]:
    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = body(*inputs)
            ctx.set_materialize_grads(False)
            setup_context(ctx, inputs, output)
            return output

        backward = staticmethod(once_differentiable(differentiate))  # type: ignore[assignment]

    return Direct
