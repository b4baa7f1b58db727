"""AdamW with clipping, the average of the weights and their bfloat16 twins, as a `torch.optim` optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from progdistill.ops import adamw_ema, gradient_norm
from progdistill.ops.layout import laid_out_as

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Update(NamedTuple):
    """A parameter that has a gradient, and what an update of it reads and writes."""

    parameter: nn.Parameter
    grad: Tensor
    state: dict[str, Tensor]
    average: Tensor | None
    twin: Tensor | None


class AdamWEma(torch.optim.AdamW):
    """AdamW whose step also clips, averages the weights and writes their bfloat16 twins, in one pass over the state.

    A step is `ops.gradient_norm` over all groups (if `max_grad_norm` is given), one increment, and `ops.adamw_ema`
    once a group. Everything else is `torch.optim.AdamW`: groups, learning rate schedulers, and `state_dict`, which
    either class loads from the other (from this one as `fused=True` would write it). The average is kept apart: see
    `ema_state_dict`.

    A captured CUDA graph may hold a step if the learning rate is a tensor and steps have been done before with
    gradients for the same parameters; load states before the capture.

        network = UNet(config).cuda()
        twin = copy.deepcopy(network).bfloat16()  # computes, and receives the gradients
        optimizer = AdamWEma(
            network.named_parameters(),
            lr=torch.tensor(1e-4, device="cuda"),
            max_grad_norm=1.0,
            ema_decay=0.9999,
            twins=dict(zip(network.parameters(), twin.parameters())),
        )
        for batch in batches:
            loss(twin, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        network.load_state_dict(optimizer.ema_state_dict(), strict=False)

    Args:
        params: parameters, float32 or float64; (name, parameter) pairs; or dicts of them, as torch takes them.
        lr: a number or a tensor of one element on the parameters' device.
        betas, eps, weight_decay: as in torch.
        max_grad_norm: bound of the norm over all groups, as in `clip_grad_norm_`; gradients stay as they are. None: no
            clipping; math.inf: only measured. The norm of the last step is in `grad_norm`.
        ema_decay: d of the average, a number in [0, 1) or a tensor; None: no average. Needs names. A parameter is
            averaged over its own updates, those in which it had a gradient, with the bias correction of their number;
            where a state is loaded without averages, they begin at the weights of that moment.
        twins: parameter -> bfloat16 tensor that receives its new weights. Where a parameter has no gradient its twin's
            counts, and `zero_grad` clears both.
        backend: force an implementation of the operations; default: the best available.

    Raises:
        ValueError: `ema_decay` without names; a twin of something that is not a parameter here.
    """

    grad_norm: Tensor | None = None
    """The norm of all gradients in the last step, before clipping: a tensor of shape (), None without clipping."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        max_grad_norm: float | None = None,
        ema_decay: float | Tensor | None = None,
        twins: Mapping[nn.Parameter, Tensor] | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)
        self._step_supports_amp_scaling = False  # a GradScaler is to divide the gradients itself
        self.max_grad_norm = max_grad_norm
        self.ema_decay = ema_decay
        self.twins = dict(twins or {})
        self.backend = backend
        self._averages: dict[nn.Parameter, Tensor] = {}
        if ema_decay is not None and any("param_names" not in group for group in self.param_groups):
            raise ValueError("an average is saved by name: pass network.named_parameters() where ema_decay is given")
        own = {parameter for group in self.param_groups for parameter in group["params"]}
        if not self.twins.keys() <= own:
            raise ValueError("twins has a key that is not a parameter of this optimizer; map its own parameters")

    def __getstate__(self) -> dict[str, Any]:
        names = ("max_grad_norm", "ema_decay", "twins", "backend", "_averages", "_step_supports_amp_scaling")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does one update of the parameters that have gradients; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [self._with_gradients(group) for group in self.param_groups]
        updates = [update for group in groups for update in group]
        if self.max_grad_norm is not None:
            self.grad_norm = gradient_norm([update.grad for update in updates], backend=self.backend)
        self._count_up([update.state for update in updates])
        for group, members in zip(self.param_groups, groups, strict=True):
            # One call in all, unless some of the group's parameters have been left out before, or have no twin.
            calls: dict[tuple, list[Update]] = {}
            for update in members:
                key = id(update.state["step"]), update.twin is None, update.parameter.dtype
                calls.setdefault(key, []).append(update)
            for call in calls.values():
                self._run(group, call)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of parameters and twins."""
        super().zero_grad(set_to_none)
        for twin in self.twins.values():
            if twin.grad is not None and set_to_none:
                twin.grad = None
            elif twin.grad is not None:
                twin.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The state as `torch.optim.AdamW(fused=True)` has it: without the average."""
        result = super().state_dict()
        # Torch counts in float32, for each parameter apart: it would count up a shared tensor several times.
        result["state"] = {
            key: {**state, "step": state["step"].to(torch.float32, copy=True)} for key, state in result["state"].items()
        }
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what this class or `torch.optim.AdamW` saved. The average is loaded by `load_ema_state_dict`."""
        super().load_state_dict(state_dict)
        self._share_steps()

    def ema_state_dict(self) -> dict[str, Tensor]:
        """The averaged parameters by name, for `load_state_dict` of a network: the tensors themselves, no copies."""
        return {name: self._average(parameter) for name, parameter in self._named_parameters()}

    def load_ema_state_dict(self, averages: Mapping[str, Tensor]) -> None:
        """Restores what `ema_state_dict` gave.

        Raises:
            ValueError: a missing or unknown name, or another shape.
        """
        own = self.ema_state_dict()
        if own.keys() != averages.keys():
            raise ValueError(f"the averages do not fit: {sorted(own.keys() ^ averages.keys())} are on one side only")
        for name, average in own.items():
            if average.shape != averages[name].shape:
                raise ValueError(
                    f"the average {name} has shape {tuple(averages[name].shape)}, its parameter {tuple(average.shape)}"
                )
            average.copy_(averages[name])

    def _named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        if self.ema_decay is None:
            raise ValueError("this optimizer keeps no average; make it with ema_decay")
        for group in self.param_groups:
            yield from zip(group["param_names"], group["params"], strict=True)

    def _average(self, parameter: nn.Parameter) -> Tensor:
        average = self._averages.get(parameter)
        if average is None:
            average = self._averages[parameter] = parameter.detach().clone()
        return average

    def _with_gradients(self, group: dict[str, Any]) -> list[Update]:
        for option in ("amsgrad", "maximize", "differentiable"):
            if group.get(option):
                raise ValueError(f"a group has {option}=True, which AdamWEma does not do; use torch.optim.AdamW")
        updates = []
        for parameter in group["params"]:
            twin = self.twins.get(parameter) if self.twins else None
            grad = parameter.grad
            if twin is not None and twin.grad is not None:
                if grad is not None:
                    raise ValueError(
                        "a parameter and its twin both have gradients; compute with one of them, clear the other"
                    )
                grad = twin.grad
            if grad is not None:
                state = self._prepared_state(parameter, self._moments(group))
                average = self._average(parameter) if self.ema_decay is not None else None
                updates.append(Update(parameter, grad, state, average, twin))
        return updates

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        """What a group's parameters have in `state` besides their step."""
        return _MOMENTS

    def _prepared_state(self, parameter: nn.Parameter, moments: tuple[str, ...]) -> dict[str, Tensor]:
        """A parameter's state, made if it is missing; it lies in memory as the parameter does."""
        state = self.state[parameter]
        if not state:
            for name in moments:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        elif state["exp_avg"].stride() != parameter.stride():
            for name in moments:
                state[name] = laid_out_as(state[name], parameter)
            if parameter in self._averages:
                self._averages[parameter] = laid_out_as(self._averages[parameter], parameter)
        return state

    def _count_up(self, states: list[dict[str, Tensor]]) -> None:
        """Counts an update of these parameters. Those that have always been updated together share a counter."""
        self._share_steps()
        sharing = Counter(id(state["step"]) for state in self.state.values() if "step" in state)
        taking_part = Counter(id(state["step"]) for state in states if "step" in state)
        own: dict[int | None, Tensor] = {}
        for state in states:
            step = state.get("step")
            shared = None if step is None else id(step)
            if shared is not None and taking_part[shared] == sharing[shared]:
                continue
            if shared not in own:  # of those who begin now, or who part from others that are left out
                zero = torch.zeros((), dtype=torch.int64, device=state["exp_avg"].device)
                own[shared] = zero if step is None else step.clone()
            state["step"] = own[shared]
        counters = {id(state["step"]): state["step"] for state in states}
        if counters:
            torch._foreach_add_(list(counters.values()), 1)

    def _share_steps(self) -> None:
        """Turns torch's counters, one a parameter in float32, into int64 ones that equal parameters share."""
        counters: dict[int, Tensor] = {}
        for parameter, state in self.state.items():
            step = state.get("step")
            if step is None or (isinstance(step, Tensor) and step.dtype == torch.int64):
                continue
            value = int(step)
            if value not in counters:
                counters[value] = torch.tensor(value, dtype=torch.int64, device=parameter.device)
            state["step"] = counters[value]

    def _run(self, group: dict[str, Any], updates: list[Update]) -> None:
        adamw_ema(
            [update.parameter for update in updates],
            [update.grad for update in updates],
            [update.state["exp_avg"] for update in updates],
            [update.state["exp_avg_sq"] for update in updates],
            updates[0].state["step"],
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            grad_norm=self.grad_norm if self.max_grad_norm is not None else None,
            max_norm=self.max_grad_norm,
            emas=None if self.ema_decay is None else [update.average for update in updates],
            ema_decay=self.ema_decay,
            twins=None if updates[0].twin is None else [update.twin for update in updates],
            backend=self.backend,
        )
