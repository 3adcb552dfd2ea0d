"""Networks compiled by ``torch.compile`` while a block lasts. The modules themselves are not touched.

The thing people get wrong: a compiled graph cannot be differentiated twice, and an attack that needs a second
derivative fails after an hour. Here the graph of a gradient is always that of the network as it was written;
so are forward-mode derivatives and the transforms of `torch.func`.
"""

import contextlib
import logging
import types
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

log = logging.getLogger(__name__)

_active: "Compiler | None" = None


@contextlib.contextmanager
def compiling(wanted: bool, mode: str | None = None) -> Iterator[None]:
    """Inside the block, networks are compiled when they are first called; results differ by rounding only.

    Each shape and precision is compiled once, which takes seconds to minutes. A network that cannot be
    compiled is called as it is, and one sentence of the log says so.

    Args:
        wanted: False calls every network as it is, also inside another block.
        mode: of ``torch.compile``; None takes its default.
    """
    global _active
    before = _active
    _active = Compiler(mode) if wanted else None
    try:
        yield
    finally:
        _active = before


def call(network: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Calls a network, in its compiled form inside a block of `compiling`."""
    compiler = _active
    if compiler is None or kwargs or not compiler.takes(network, x, args):
        return network(x, *args, **kwargs)
    fast = compiler.of(cast(nn.Module, network))
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, _Differentiated.apply(fast, network, x, *args))  # type: ignore[no-untyped-call]
    return fast(x, *args)


class Compiler:
    """The compiled forms of networks, one for each module.

    Args:
        mode: of ``torch.compile``.
    """

    def __init__(self, mode: str | None = None) -> None:
        self.mode = mode
        self._made: dict[int, tuple[nn.Module, Callable[..., Tensor]]] = {}
        self._plain: set[int] = set()

    def takes(self, network: Any, x: Tensor, args: tuple[Any, ...]) -> bool:
        """Whether a call can be a compiled one: of a module, with nothing but its image to differentiate."""
        if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
            return False
        if id(network) in self._plain or torch.compiler.is_compiling():
            return False
        rest = [a for a in args if isinstance(a, Tensor)]
        return not any(a.requires_grad for a in rest) and not any(map(_transformed, [x, *rest]))

    def of(self, network: nn.Module) -> Callable[..., Tensor]:
        """Returns the compiled form of a network, which is made when it is first called."""
        if id(network) not in self._made:
            compiled = torch.compile(_caller(network), dynamic=False, mode=self.mode)
            self._made[id(network)] = network, lambda *args: self._called(network, compiled, args)
        return self._made[id(network)][1]

    def _called(self, network: nn.Module, compiled: Callable[..., Any], args: tuple[Any, ...]) -> Tensor:
        try:
            found: Tensor = compiled(*args)
            return found
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            result = _image(network(*args))  # what is wrong with the network itself is raised here
            self._plain.add(id(network))
            said = str(error).strip().split("\n")[0][:200]
            log.warning("%s is not compiled (%s: %s)", type(network).__name__, type(error).__name__, said)
            return result


def _caller(network: nn.Module) -> Callable[..., Tensor]:
    """A function that calls a network, with a code of its own: the compiler keeps a few graphs of each code.

    The module itself is not given to the compiler, which would set attributes of it: it would be another one.
    """

    def called(*args: Any) -> Tensor:
        return _image(network(*args))

    code = called.__code__.replace(co_name=f"called_{type(network).__name__}")
    return types.FunctionType(code, called.__globals__, code.co_name, None, called.__closure__)


def _image(output: Any) -> Tensor:
    """The tensor of an output; diffusers wraps it."""
    found = getattr(output, "sample", output)
    if not isinstance(found, Tensor):
        raise TypeError(f"it returns {type(found).__name__}, not a tensor")
    return found


def _transformed(x: Tensor) -> bool:
    """Whether a tensor belongs to forward-mode differentiation or a transform of `torch.func`."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    unpack: Callable[[Tensor], Any] = forward_ad.unpack_dual
    return forward_ad._current_level >= 0 and unpack(x).tangent is not None


class _Differentiated(torch.autograd.Function):
    """A compiled call with its compiled gradient, and the network as it is where that has a graph itself."""

    @staticmethod
    def forward(ctx: Any, fast: Callable[..., Tensor], network: nn.Module, x: Tensor, *args: Any) -> Tensor:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            out = fast(leaf, *args)
        ctx.graph, ctx.network, ctx.args = (leaf, out), network, args
        ctx.device, ctx.lowered = x.device.type, torch.is_autocast_enabled(x.device.type)
        ctx.dtype = torch.get_autocast_dtype(x.device.type)
        ctx.save_for_backward(x)
        found = out.detach()
        if not out.requires_grad:  # a path is detached, and whoever asks for the gradient has to know
            ctx.mark_non_differentiable(found)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        nothing = (None,) * len(ctx.args)
        if not torch.is_grad_enabled():  # no graph of the gradient is asked for
            leaf, out = ctx.graph
            keep = torch._C._autograd._get_current_graph_task_keep_graph()
            (found,) = torch.autograd.grad(out, leaf, grad, retain_graph=keep, materialize_grads=True)
            return None, None, found, *nothing
        (x,) = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(ctx.device, ctx.dtype, enabled=ctx.lowered):
            again = x.view_as(x)
            out = _image(ctx.network(again, *ctx.args))
        (found,) = torch.autograd.grad(out, again, grad, create_graph=True, materialize_grads=True)
        return None, None, found, *nothing
