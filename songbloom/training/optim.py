"""Adam with the numerics that published Jukebox models were trained with.

For each parameter ``p`` with gradient ``g`` (divided by the loss scale), step count ``t``, moments ``m`` and ``v``:

    m = b1*m + (1 - b1)*g
    v = b2*v + (1 - b2)*g**2
    s = lr * sqrt(1 - b2**t) / (1 - b1**t)
    p = p - s * (m / (sqrt(v) + eps) + weight_decay * p)

It differs from :class:`torch.optim.AdamW` in two places: ``eps`` is added to the uncorrected ``sqrt(v)`` (as in
section 2 of Kingma & Ba, "Adam", in its efficient order of computation), and weight decay is multiplied by the
bias-corrected step size. All arithmetic is float32, whatever the parameter's own dtype; moments are float32, or
float16 with one scale a tensor where ``half_moments`` asks for it and the parameter is float16.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from songbloom.errors import UserError

IMPLEMENTATIONS = ("auto", "fused", "foreach", "apex")
HALF_LARGEST = 65504.0  # largest finite float16; moments are scaled so that their largest entry lands there
HALF_SMALLEST_SCALE = 1e-8
CHUNK_ELEMENTS = 1 << 25  # parameters handled at once by the foreach path: bounds its temporaries to some 128 MiB each


def _decay_(tensors: list[Tensor], others: list[Tensor], keep: float, take: float) -> None:
    torch._foreach_mul_(tensors, keep)
    torch._foreach_add_(tensors, others, alpha=take)


class Adam(torch.optim.Optimizer):
    """Adam as in this module's docstring.

    Args:
        params: parameters, or groups of them with their own ``lr``, ``betas``, ``eps`` and ``weight_decay``.
        lr: learning rate.
        betas: decay of the first and second moment a step.
        eps: added to ``sqrt(v)`` before its bias correction.
        weight_decay: decoupled from the moments, multiplied by the bias-corrected step size.
        half_moments: keep the moments of float16 parameters as float16 with one float32 scale a tensor
            (hyperparameter ``fp16_opt``); others keep float32 moments.
        implementation: ``"foreach"`` follows the formula operation by operation and handles every dtype; ``"fused"``
            uses torch's one-pass kernel for float32 parameters on the CPU and on CUDA and foreach for the rest;
            ``"auto"`` is ``"fused"``; ``"apex"`` uses NVIDIA apex's multi-tensor kernel for float32 on CUDA.

    Raises:
        UserError: ``implementation`` is unknown, or apex is asked for and not installed.
    """

    # torch wraps these to keep its compiler out of them, for which it reads all of the compiler: seconds a start.
    # Only models are ever compiled here.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        half_moments: bool = False,
        implementation: str = "auto",
    ) -> None:
        if implementation not in IMPLEMENTATIONS:
            raise UserError(
                f"Adam has no implementation {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}"
            )
        self.half_moments = half_moments
        self.implementation = implementation
        self._apex = _load_apex() if implementation == "apex" else None
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, scale: float | Tensor | Sequence[float] = 1.0) -> Any:
        """Take one step with ``grad / scale``, a number for all or one a group; without a gradient nothing changes."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scales = list(scale) if isinstance(scale, Sequence) else [float(scale)] * len(self.param_groups)
        for group, own_scale in zip(self.param_groups, scales, strict=True):
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self._prepare(p)
            for same in _alike(params, lambda p: (p.device, p.dtype, self.state[p]["step"], _grad(p).dtype)):
                self._step_alike(group, same, own_scale)
        return loss

    def _prepare(self, p: Tensor) -> None:
        state = self.state[p]
        if state:
            return
        half = self.half_moments and p.dtype == torch.float16
        dtype = torch.float16 if half else torch.float32
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        if half:
            state["scale_exp_avg"] = torch.ones((), device=p.device)
            state["scale_exp_avg_sq"] = torch.ones((), device=p.device)

    def _step_alike(self, group: dict[str, Any], params: Sequence[Tensor], scale: float) -> None:
        """One step of parameters that share device, dtype and step count."""
        first = params[0]
        state = self.state[first]
        beta1, beta2 = group["betas"]
        step = state["step"] + 1
        for p in params:
            self.state[p]["step"] = step
        correction1, correction2 = 1 - beta1**step, 1 - beta2**step
        step_size = group["lr"] * correction2**0.5 / correction1
        plain = first.dtype == torch.float32 and _grad(first).dtype == torch.float32
        if plain and self._apex is not None and first.device.type == "cuda":
            self._apex_step(group, params, scale, correction1, correction2)
        elif plain and self.implementation in ("auto", "fused") and first.device.type in ("cpu", "cuda"):
            self._fused_step(group, params, scale, correction1, correction2)
        else:
            for chunk in _chunks(params):
                self._foreach_step(group, chunk, scale, step_size)

    def _kernel_settings(self, group: dict[str, Any], correction1: float, correction2: float) -> tuple[float, float]:
        """``eps`` and ``weight_decay`` with which AdamW's usual formula does ours.

        AdamW computes ``p*(1 - lr*wd) - lr/c1 * m/(sqrt(v)/sqrt(c2) + eps)``. Dividing our numerator and denominator by
        ``sqrt(c2)`` gives the same with ``eps/sqrt(c2)`` and ``wd*sqrt(c2)/c1``.
        """
        root = correction2**0.5
        return group["eps"] / root, group["weight_decay"] * root / correction1

    def _fused_step(
        self, group: dict[str, Any], params: Sequence[Tensor], scale: float, correction1: float, correction2: float
    ) -> None:
        eps, decay = self._kernel_settings(group, correction1, correction2)
        beta1, beta2 = group["betas"]
        first = params[0]
        grads = [_grad(p) for p in params]
        if scale != 1.0:
            grads = list(torch._foreach_div(grads, scale))
        # The kernel takes its step count as a tensor on the device and does not change it.
        count = torch.tensor(float(self.state[first]["step"]), device=first.device)
        torch._fused_adamw_(
            list(params),
            grads,
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [count] * len(params),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=None,
        )

    def _apex_step(
        self, group: dict[str, Any], params: Sequence[Tensor], scale: float, correction1: float, correction2: float
    ) -> None:
        assert self._apex is not None
        eps, decay = self._kernel_settings(group, correction1, correction2)
        beta1, beta2 = group["betas"]
        grads = [_grad(p) for p in params]
        if scale != 1.0:
            grads = list(torch._foreach_div(grads, scale))
        moments = [[self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq")]
        nothing_overflowed = torch.zeros(1, dtype=torch.int, device=params[0].device)
        step = self.state[params[0]]["step"]
        adamw, bias_correction = 1, True
        kernel, apply = self._apex
        lists = [grads, list(params), *moments]
        apply(kernel, nothing_overflowed, lists, group["lr"], beta1, beta2, eps, step, adamw, bias_correction, decay)

    def _foreach_step(self, group: dict[str, Any], params: Sequence[Tensor], scale: float, step_size: float) -> None:
        beta1, beta2 = group["betas"]
        grads = [_grad(p).float() for p in params]
        if scale != 1.0:
            grads = list(torch._foreach_div(grads, scale))
        means, squares = self._moments(params, "exp_avg"), self._moments(params, "exp_avg_sq")
        _decay_(means, grads, beta1, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        update = list(torch._foreach_sqrt(squares))
        torch._foreach_add_(update, group["eps"])
        torch._foreach_reciprocal_(update)
        torch._foreach_mul_(update, means)
        values = [p.float() for p in params]  # the parameter itself where it is float32
        if group["weight_decay"]:
            torch._foreach_add_(update, values, alpha=group["weight_decay"])
        torch._foreach_add_(values, update, alpha=-step_size)
        for p, value in zip(params, values, strict=True):
            if value is not p:
                p.copy_(value)
        self._keep_moments(params, "exp_avg", means)
        self._keep_moments(params, "exp_avg_sq", squares)

    def _moments(self, params: Sequence[Tensor], key: str) -> list[Tensor]:
        """Float32 moments: the kept tensors themselves, or unscaled copies of float16 ones."""
        kept = []
        for p in params:
            state = self.state[p]
            moment = state[key]
            kept.append(moment.float() * state[f"scale_{key}"] if moment.dtype == torch.float16 else moment)
        return kept

    def _keep_moments(self, params: Sequence[Tensor], key: str, moments: Sequence[Tensor]) -> None:
        for p, moment in zip(params, moments, strict=True):
            state = self.state[p]
            if state[key].dtype == torch.float16:
                state[f"scale_{key}"] = HALF_SMALLEST_SCALE + moment.abs().max() / HALF_LARGEST
                state[key].copy_(moment / state[f"scale_{key}"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the moments that :meth:`state_dict` gave, keeping each one's own dtype.

        Settings (betas, eps, weight decay) stay as they were given now: a restart may change them.

        (The base class would cast moments to the parameter's dtype, which rounds float32 moments of half parameters.)

        Raises:
            UserError: it belongs to other parameters (their number or a shape differs).
        """
        groups, saved = self.param_groups, state_dict["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in saved]:
            raise UserError(
                "the saved optimiser state belongs to a model with other parameters; start with --reset_opt"
            )
        for group, old in zip(groups, saved, strict=True):
            for p, index in zip(group["params"], old["params"], strict=True):
                state = state_dict["state"].get(index)
                if state is None:
                    self.state.pop(p, None)
                    continue
                if state["exp_avg"].shape != p.shape:
                    raise UserError(
                        f"the saved optimiser state belongs to another model: shape {tuple(state['exp_avg'].shape)} "
                        f"instead of {tuple(p.shape)}; start with --reset_opt"
                    )
                self.state[p] = {k: v.to(p.device) if isinstance(v, Tensor) else v for k, v in state.items()}


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _alike(params: Iterable[Tensor], key: Callable[[Tensor], Any]) -> Iterator[list[Tensor]]:
    groups: dict[Any, list[Tensor]] = {}
    for p in params:
        groups.setdefault(key(p), []).append(p)
    yield from groups.values()


def _chunks(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    chunk: list[Tensor] = []
    size = 0
    for p in params:
        if chunk and size + p.numel() > CHUNK_ELEMENTS:
            yield chunk
            chunk, size = [], 0
        chunk.append(p)
        size += p.numel()
    if chunk:
        yield chunk


def _load_apex() -> tuple[Any, Any]:
    try:
        from amp_C import multi_tensor_adam
        from apex.multi_tensor_apply import multi_tensor_applier
    except ImportError as error:
        raise UserError(
            "NVIDIA apex was asked for and is not installed; build it from its repository with its CUDA extensions, "
            "or leave the option off: torch's own fused kernel is used then"
        ) from error
    return multi_tensor_adam, multi_tensor_applier


@torch.no_grad()
def gradient_norm(params: Iterable[Tensor], scale: float = 1.0) -> Tensor:
    """The 2-norm of all gradients together, divided by ``scale``; a float32 scalar, not finite if any gradient is not.

    Norms of half-precision gradients are taken in float32.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for p in params:
        if p.grad is not None:
            by_device.setdefault(p.grad.device, []).append(p.grad)
    if not by_device:
        return torch.zeros(())
    device = next(iter(by_device))
    norms: list[Tensor] = []
    for grads in by_device.values():
        norms += torch._foreach_norm(grads, 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms])) / scale


def clipped_scale(norm: float, clip: float | None, scale: float = 1.0) -> float:
    """The number to divide gradients by, so that the norm after it is at most ``clip``.

    Args:
        norm: what :func:`gradient_norm` gave with this ``scale``.
        clip: the largest norm wanted; None or 0 clips nothing.
        scale: the loss scale that the gradients still carry.
    """
    return scale * max(1.0, norm / clip) if clip else scale


def make_adam(params: Iterable[Any], hps: Any, *, half_moments: bool = False) -> Adam:
    """The optimiser that hyperparameters ``lr, beta1, beta2, eps, weight_decay`` and ``use_apex`` describe."""
    return Adam(
        params,
        lr=hps["lr"],
        betas=(hps["beta1"], hps["beta2"]),
        eps=hps["eps"],
        weight_decay=hps["weight_decay"],
        half_moments=half_moments,
        implementation="apex" if hps.get("use_apex", False) else "auto",
    )
