"""A CUDA graph's stand-in on the CPU: the operations of one run, done again on the same memory."""

import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What makes the host wait for the device, or look at what is there.
READS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::equal"}


class RecordedGraph:
    """Records without doing, as a capture: what is written while it records is undone.

    Numbers stay as they were, new tensors get their memory once. Reading a value raises RuntimeError, but for the
    checks of values, which are made on the CPU only.
    """

    def __init__(self, run):
        generator = torch.get_rng_state()
        with _Recording() as recording:
            run()
        recording.undo()
        torch.set_rng_state(generator)
        self._calls = recording.calls

    @torch.no_grad()
    def replay(self):
        for function, arguments, options, results in self._calls:
            for kept, new in zip(results, _tensors(function(*arguments, **options)), strict=True):
                if kept is not None:
                    kept.copy_(new)

    def reset(self):
        self._calls = None


class CpuRecorder:
    """Does what `CudaRecorder` does."""

    def __init__(self, device):
        self.recorded = 0

    def warm_up(self, run):
        run()
        return []

    def record(self, run):
        return RecordedGraph(run)


class _Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self._before, self._own = [], [], set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        name = function._schema.name
        if name in READS and not _checking_values():
            raise RuntimeError(f"{name} while a graph is recorded")
        self._remember(function._schema.arguments, arguments, options)
        result = function(*arguments, **options)
        given = {_memory(tensor) for tensor in _tensors((arguments, options))}
        new = [None if _memory(tensor) in given else tensor.detach() for tensor in _tensors(result)]
        self._own |= {_memory(tensor) for tensor in new if tensor is not None}
        self.calls.append((function, arguments, options, new))
        return result

    def _remember(self, parameters, arguments, options):
        """What is about to be written and was there before."""
        given = dict(zip((parameter.name for parameter in parameters), arguments, strict=False)) | options
        for parameter in parameters:
            if parameter.alias_info is not None and parameter.alias_info.is_write:
                for tensor in _tensors(given.get(parameter.name)):
                    if _memory(tensor) not in self._own:
                        self._before.append((tensor.detach(), tensor.detach().clone()))

    def undo(self):
        for tensor, before in reversed(self._before):
            tensor.copy_(before)


def _tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _memory(tensor):
    return tensor.untyped_storage().data_ptr()


def _checking_values():
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name.lstrip("_").startswith("check"):
            return True
        frame = frame.f_back
    return False
