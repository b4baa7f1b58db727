"""One update in one pass, against torch's AdamW, clip_grad_norm_ and _foreach_lerp_ in float32 and float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.library import opcheck

from progdistill import ops
from progdistill.ops import backends, native

# More than a chunk, odd sizes, one element, none, a scalar, and one whose strides say nothing about its order.
SHAPES = [(5, 3, 3, 3), (4099,), (0,), (7, 11), (1,), (), (64, 2, 1, 1), (2, 3, 2, 2, 2)]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
LR, DECAY, MAX_NORM = 1e-2, 0.99, 1.0


def in_order(tensor, last):
    return tensor.contiguous(memory_format=LAST[tensor.dim()]) if last and tensor.dim() in LAST else tensor


def gradients(update, shapes=SHAPES):
    """Of one update: some are above the bound of the norm, some below."""
    generator = torch.Generator().manual_seed(update)
    size = 10.0 if update % 3 == 0 else 1e-3
    return [size * torch.randn(shape, generator=generator) for shape in shapes]


def fresh(shapes=SHAPES, dtype=torch.float32, last=False):
    """Parameters and all that belongs to them, before the first update."""
    generator = torch.Generator().manual_seed(-1)
    params = [in_order(torch.randn(shape, generator=generator).to(dtype), last) for shape in shapes]
    zeros = lambda dtype=dtype: [torch.zeros_like(param, dtype=dtype) for param in params]  # noqa: E731
    return SimpleNamespace(
        params=params, exp_avgs=zeros(), exp_avg_sqs=zeros(), emas=zeros(), twins=zeros(torch.bfloat16)
    )


def rows(state):
    return [state.params, state.exp_avgs, state.exp_avg_sqs, state.emas]


def torch_run(updates, *, dtype=torch.float32, clip=True, shapes=SHAPES):
    """The same by torch's own functions."""
    state = fresh(shapes, dtype)
    params = [torch.nn.Parameter(param) for param in state.params]
    optimizer = torch.optim.AdamW(params, LR, fused=True)
    for update in range(1, updates + 1):
        for param, grad in zip(params, gradients(update, shapes), strict=True):
            param.grad = grad.to(dtype)
        if clip:
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
        state.params = [param.detach() for param in params]
        torch._foreach_lerp_(state.emas, state.params, (1 - DECAY) / (1 - DECAY**update))
    state.exp_avgs = [optimizer.state[param]["exp_avg"] for param in params]
    state.exp_avg_sqs = [optimizer.state[param]["exp_avg_sq"] for param in params]
    return state


def update_once(backend, state, grads, step, *, clip=True, average=True, twin=True, **options):
    placed = backend.place(grads)
    options = {"lr": LR, **options}
    if clip:
        options = {"grad_norm": ops.gradient_norm(placed, backend=backend.name), "max_norm": MAX_NORM, **options}
    if average:
        options = {"emas": state.emas, "ema_decay": DECAY, **options}
    if twin:
        options["twins"] = state.twins
    moments = state.exp_avgs, state.exp_avg_sqs
    ops.adamw_ema(state.params, placed, *moments, step, backend=backend.name, **options)


def on(backend, state):
    return SimpleNamespace(**{name: backend.place(tensors) for name, tensors in vars(state).items()})


def run(backend, updates, *, last=False, convert=lambda grads: grads, start=None, **options):
    state = on(backend, start or fresh(last=last))
    for update in range(1, updates + 1):
        update_once(backend, state, convert(gradients(update)), update, **options)
    return SimpleNamespace(**{name: [tensor.cpu() for tensor in tensors] for name, tensors in vars(state).items()})


def error(mine, truth):
    return max(((a.double() - b).abs().max().item() for a, b in zip(mine, truth, strict=True) if a.numel()), default=0)


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("clip", [True, False])
def test_a_hundred_updates_are_as_good_as_torch(backend, clip):
    updates = 5 if backend.interpreted else 100
    truth, plain = torch_run(updates, dtype=torch.float64, clip=clip), torch_run(updates, clip=clip)
    mine = run(backend, updates, clip=clip)
    for got, torch_own, exact in zip(rows(mine), rows(plain), rows(truth), strict=True):
        assert 0 < error(got, exact) <= 2 * error(torch_own, exact)
    assert same_bits(mine.twins, [param.bfloat16() for param in mine.params])


def test_the_reference_is_torch_in_float64():
    truth, state = torch_run(20, dtype=torch.float64), fresh(dtype=torch.float64)
    for update in range(1, 21):
        grads = [grad.double() for grad in gradients(update)]
        norm = ops.gradient_norm(grads, backend="reference")
        moments = state.exp_avgs, state.exp_avg_sqs
        options = {"grad_norm": norm, "max_norm": MAX_NORM, "emas": state.emas, "ema_decay": DECAY}
        ops.adamw_ema(state.params, grads, *moments, update, lr=LR, backend="reference", **options)
    for got, exact in zip(rows(state), rows(truth), strict=True):
        assert error(got, exact) < 1e-13


def test_float64(backend):
    updates = 5 if backend.interpreted else 20
    truth = torch_run(updates, dtype=torch.float64)
    double = lambda grads: [grad.double() for grad in grads]  # noqa: E731
    mine = run(backend, updates, start=fresh(dtype=torch.float64), convert=double, twin=False)
    for got, exact in zip(rows(mine), rows(truth), strict=True):
        assert error(got, exact) < 1e-13


def test_cuda_and_cpu_kernels_give_the_same_bits(backend):
    if backend.name == "cpu" or native._C.build_info()["cpu_capability"] == "baseline":
        pytest.skip("compares CUDA code with C++ loops that have fused multiply-add")
    norm = torch.tensor(3.0)  # their own norms are added up in another order
    mine = run(backend, 5, grad_norm=backend.place(norm))
    theirs = run(type(backend)("cpu", "cpu"), 5, grad_norm=norm)
    assert all(same_bits(a, b) for a, b in zip(vars(mine).values(), vars(theirs).values(), strict=True))


def test_what_is_not_asked_for_changes_nothing_else(backend):
    whole, bare = run(backend, 3), run(backend, 3, average=False, twin=False)
    assert all(same_bits(a, b) for a, b in zip(rows(whole)[:3], rows(bare)[:3], strict=True))


def test_bfloat16_gradients(backend):
    low = lambda grads: [grad.bfloat16() for grad in grads]  # noqa: E731
    mine = run(backend, 3, convert=low, clip=False)
    exact = run(backend, 3, convert=lambda grads: [grad.float() for grad in low(grads)], clip=False)
    assert all(same_bits(a, b) for a, b in zip(rows(mine), rows(exact), strict=True))


def test_channels_last_gives_the_same_bits_in_its_own_order(backend):
    plain = run(backend, 3, clip=False)
    for convert in (lambda grads: grads, lambda grads: [in_order(grad, True) for grad in grads]):
        moved = run(backend, 3, last=True, convert=convert, clip=False)
        assert moved.params[0].is_contiguous(memory_format=torch.channels_last)
        assert all(same_bits(a, b) for a, b in zip(rows(plain), rows(moved), strict=True))


def test_off_the_16_byte_grid(backend):
    def shifted(tensor):
        room = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)[1:]
        return room.view(tensor.shape).copy_(tensor)

    start = vars(on(backend, fresh())).items()
    start = SimpleNamespace(**{name: [shifted(tensor) for tensor in tensors] for name, tensors in start})
    mine, plain = run(backend, 3, start=start, clip=False), run(backend, 3, clip=False)
    assert all(same_bits(a, b) for a, b in zip(rows(plain), rows(mine), strict=True))


def test_more_tensors_than_one_launch_takes(backend, monkeypatch):
    count = 530
    if backend.interpreted:
        count = 40
        monkeypatch.setattr("progdistill.ops.triton_kernels.tensor_table._MOST", 16)
    shapes = [(1 + i % 3,) for i in range(count)]
    state, plain = fresh(shapes), torch_run(1, clip=False, shapes=shapes)
    mine = run(backend, 0, start=state)
    placed = on(backend, mine)
    update_once(backend, placed, gradients(1, shapes), 1, clip=False)
    assert error([param.cpu() for param in placed.params], [param.double() for param in plain.params]) < 1e-6


def test_numbers_may_be_tensors(backend):
    numbers, tensors = on(backend, fresh()), on(backend, fresh())
    step, lr = backend.place(torch.tensor(0)), backend.place(torch.tensor(0.0, dtype=torch.float64))
    decay = backend.place(torch.tensor([DECAY], dtype=torch.float64))
    for update, rate in enumerate((0.1, 0.05, 0.2), start=1):
        lr.fill_(rate)
        step.add_(1)
        update_once(backend, numbers, gradients(update), update, lr=rate)
        update_once(backend, tensors, gradients(update), step, lr=lr, ema_decay=decay)
    assert int(step) == 3
    assert all(same_bits(a, b) for a, b in zip(rows(numbers), rows(tensors), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_do_what_they_do_in_torch(backend, bad):
    state, params = fresh([(4,), (3,)]), [torch.nn.Parameter(param) for param in fresh([(4,), (3,)]).params]
    grads = gradients(1, [(4,), (3,)])
    grads[0][1] = bad
    optimizer = torch.optim.AdamW(params, LR, fused=True)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
    optimizer.step()
    placed = on(backend, state)
    own_norm = ops.gradient_norm(backend.place(grads), backend=backend.name)
    update_once(backend, placed, grads, 1)
    torch.testing.assert_close(own_norm.cpu(), norm, equal_nan=True)
    torch.testing.assert_close([param.cpu() for param in placed.params], [p.detach() for p in params], equal_nan=True)
    # NaN everywhere; an infinite norm spoils only what was infinite.
    assert sum(int(param.isnan().sum()) for param in placed.params) == (7 if math.isnan(bad) else 1)


def test_no_momentum_takes_the_gradient_itself(backend):
    # In one step from a large second moment to a tiny gradient: no digit of the large one may be left.
    state = on(backend, fresh([(9,)]))
    state.exp_avg_sqs[0].fill_(1e6)
    grads = [torch.full((9,), 1e-4)]
    update_once(backend, state, grads, 5, betas=(0.0, 0.0), clip=False)
    torch.testing.assert_close(state.exp_avg_sqs[0].cpu(), grads[0] ** 2)
    assert torch.equal(state.exp_avgs[0].cpu(), grads[0])


def test_the_first_average_is_the_weight_itself(backend):
    state = fresh()
    for ema in state.emas:
        ema.fill_(1e30)
    mine = run(backend, 1, start=state)
    assert same_bits(mine.emas, mine.params)


def test_an_update_is_seen_by_autograd(backend):
    state = on(backend, fresh([(3,)]))
    leaf = backend.place(torch.ones(3)).requires_grad_()
    loss = (leaf * state.params[0]).sum()
    update_once(backend, state, gradients(1, [(3,)]), 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
def test_results_do_not_depend_on_the_number_of_threads():
    shapes = [(300, 301), (5,), (70001,), (3, 3)]
    grads, results, before = gradients(3, shapes), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            state = fresh(shapes)
            cpu = SimpleNamespace(name="cpu", place=lambda value: value)
            update_once(cpu, state, grads, 1)
            results.append([ops.gradient_norm(grads, backend="cpu"), *(t for row in rows(state) for t in row)])
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(results[0], other) for other in results[1:])


def cpu_call(**changes):
    state = fresh([(3, 2), (4,)])
    given = {
        "params": state.params,
        "grads": gradients(1, [(3, 2), (4,)]),
        "exp_avgs": state.exp_avgs,
        "exp_avg_sqs": state.exp_avg_sqs,
        "step": 1,
        "lr": LR,
        **changes,
    }
    ops.adamw_ema(**given)


def bad_calls():
    state, half = fresh([(3, 2), (4,)]), [torch.zeros(3, 2).bfloat16(), torch.zeros(4).bfloat16()]
    yield ValueError, "grads holds 1 tensors, params 2", {"grads": state.params[:1]}
    yield (
        ValueError,
        r"exp_avgs\[1\] has shape \(5,\).*params\[1\] has \(4,\)",
        {"exp_avgs": [torch.zeros(3, 2), torch.zeros(5)]},
    )
    yield TypeError, r"params\[0\] is torch.bfloat16; parameters are float32.*twins", {"params": half}
    yield TypeError, r"exp_avg_sqs\[0\] is torch.bfloat16; beside torch.float32", {"exp_avg_sqs": half}
    yield (
        TypeError,
        r"grads\[0\] is torch.float64; .* torch.float32 or torch.bfloat16",
        {"grads": [param.double() for param in state.params]},
    )
    yield TypeError, r"twins\[0\] is torch.float32; .* torch.bfloat16", {"twins": state.params}
    yield (
        ValueError,
        r"exp_avgs\[0\] has strides \(1, 3\), params\[0\] \(2, 1\)",
        {"exp_avgs": [torch.zeros(2, 3).T, torch.zeros(4)]},
    )
    yield ValueError, r"params\[1\] has gaps in memory", {"params": [torch.zeros(3, 2), torch.zeros(8)[::2]]}
    yield (
        TypeError,
        r"params\[1\] is torch.float64.*use a call for each",
        {"params": [torch.zeros(3, 2), torch.zeros(4).double()]},
    )
    yield ValueError, r"exp_avgs\[0\].* on meta", {"exp_avgs": [torch.zeros(3, 2, device="meta"), torch.zeros(4)]}
    yield ValueError, "max_norm is 1.0, grad_norm missing", {"max_norm": 1.0}
    yield ValueError, "max_norm is None, grad_norm given", {"grad_norm": torch.tensor(1.0)}
    yield ValueError, "ema_decay is 0.9, emas missing", {"ema_decay": 0.9}
    yield ValueError, "ema_decay is None, emas given", {"emas": state.emas}
    yield ValueError, r"ema_decay is 1.0; use a number in \[0, 1\)", {"emas": state.emas, "ema_decay": 1.0}
    yield ValueError, "step is 0; updates are counted from 1", {"step": 0}
    yield ValueError, "step is 0; updates are counted from 1", {"step": torch.tensor(0)}
    yield TypeError, "step is torch.float32.*one element of torch.int64", {"step": torch.tensor(1.0)}
    yield TypeError, r"lr is torch.float32 of shape \(2,\)", {"lr": torch.zeros(2)}
    yield ValueError, "lr is on meta", {"lr": torch.zeros((), device="meta")}
    yield ValueError, "lr is -0.1", {"lr": -0.1}
    yield ValueError, "lr is nan", {"lr": torch.tensor(math.nan)}
    yield ValueError, r"beta2 is 1.0; betas lie in \[0, 1\)", {"betas": (0.9, 1.0)}
    yield ValueError, "eps is -1", {"eps": -1.0}
    yield ValueError, "weight_decay is nan", {"weight_decay": math.nan}
    yield ValueError, "max_norm is -1", {"grad_norm": torch.tensor(1.0), "max_norm": -1.0}


@pytest.mark.parametrize(("kind", "message", "changes"), list(bad_calls()))
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_bad_input_is_named(kind, message, changes, name):
    with pytest.raises(kind, match=message):
        cpu_call(backend=name, **changes)


def test_no_parameters_are_no_update():
    ops.adamw_ema([], [], [], [], 1, lr=LR)
    with pytest.raises(ValueError, match="grads holds 1"):
        ops.adamw_ema([], [torch.zeros(1)], [], [], 1, lr=LR)


def test_opcheck():
    state, operator = fresh([(3, 2), (4,), (0,)]), torch.ops.progdistill.adamw_ema.default
    grads, tensor = gradients(1, [(3, 2), (4,), (0,)]), torch.tensor
    moments = state.exp_avgs, state.exp_avg_sqs
    numbers = (1, None, LR, None, 0.9, 0.999, 1e-8, 0.01, None, None, 0.0, None)
    opcheck(operator, (state.params, grads, *moments, [], [], *numbers, None))
    tensors = (0, tensor(1), 0, tensor(LR), 0.9, 0.999, 1e-8, 0.01, tensor(2.0), 1.0, 0, tensor(DECAY))
    opcheck(operator, (state.params, grads, *moments, state.emas, state.twins, *tensors, None))
    opcheck(torch.ops.progdistill.gradient_norm.default, (grads, None))


def test_compiled_updates_give_the_same_bits():
    def update(params, grads, exp_avgs, exp_avg_sqs, emas, twins, step):
        norm = ops.gradient_norm(grads)
        options = {"grad_norm": norm, "max_norm": MAX_NORM, "emas": emas, "ema_decay": DECAY, "twins": twins}
        ops.adamw_ema(params, grads, exp_avgs, exp_avg_sqs, step, lr=LR, **options)
        return norm

    results = []
    for function in (update, torch.compile(update, fullgraph=True, backend="aot_eager")):
        state = fresh([(3, 2), (4,)])
        norm = function(*([state.params, gradients(3, [(3, 2), (4,)]), *rows(state)[1:]]), state.twins, torch.tensor(2))
        results.append([norm, *(tensor for row in rows(state) for tensor in row), *state.twins])
    assert same_bits(*results)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or backends.unavailable("cuda") is not None,
    reason="needs a GPU and an extension with CUDA kernels: graphs are not emulated",
)
def test_a_captured_update_sees_new_rates_and_steps():
    shapes = [(64, 3, 3, 3), (64,), (129, 257), (5,)]
    cuda = SimpleNamespace(name="cuda", place=lambda value: [tensor.cuda() for tensor in value])
    eager, replayed = (SimpleNamespace(**{k: cuda.place(v) for k, v in vars(fresh(shapes)).items()}) for _ in range(2))
    grads = cuda.place(gradients(1, shapes))
    step, lr = torch.zeros((), dtype=torch.int64, device="cuda"), torch.zeros((), device="cuda")

    def update():
        step.add_(1)
        update_once(cuda, replayed, grads, step, lr=lr)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        update()
    torch.cuda.current_stream().wait_stream(stream)
    start = {name: cuda.place(tensors) for name, tensors in vars(fresh(shapes)).items()}
    for name, tensors in start.items():
        torch._foreach_copy_(getattr(replayed, name), tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    step.zero_()
    for number, rate in enumerate((0.1, 0.02, 0.3), start=1):
        torch._foreach_copy_(grads, cuda.place(gradients(number, shapes)))
        lr.fill_(rate)
        graph.replay()
        update_once(cuda, eager, gradients(number, shapes), number, lr=float(lr))
    assert all(same_bits(a, b) for a, b in zip(rows(eager), rows(replayed), strict=True))
    assert same_bits(eager.twins, replayed.twins)
