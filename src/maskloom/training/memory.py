"""How many images fit into memory at once: tried on CUDA, estimated on a CPU. Knows nothing about training loops."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskloom.runtime import free_memory

SHARE = 0.6
"""Of the CPU's free memory that a training step may take; the rest is for workers, file cache and others."""


def fitting_pieces(
    batch_size: int, attempt: Callable[[int], None], *, device: torch.device, network: nn.Module, sharers: int = 1
) -> int:
    """Returns into how few pieces a batch must be cut to fit into memory: 1, 2, 4 … up to one image each.

    ``attempt(n)`` runs forward and backward on n images. On CUDA it is tried with fewer and fewer images until one
    attempt does not run out of memory; on a CPU, where too much memory would only show when the system kills the
    process, one attempt with two images is measured (some networks cannot learn from one), and so many ``sharers`` take
    their part of its memory.
    """
    if device.type == "cuda":
        fits = _attempts_that_fit(attempt)
    else:
        allowed = SHARE / sharers * free_memory() / max(saved_bytes(lambda: attempt(2), network) / 2, 1)

        def fits(count: int) -> bool:
            return count <= allowed

    pieces = 1
    while pieces < batch_size and not fits(-(-batch_size // pieces)):
        pieces *= 2
    return min(pieces, batch_size)


def _attempts_that_fit(attempt: Callable[[int], None]) -> Callable[[int], bool]:
    def fits(count: int) -> bool:
        try:
            attempt(count)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            succeeded = False
        else:
            succeeded = True
        release()
        return succeeded

    return fits


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether the error says that the device (or the CPU's allocator) has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release() -> None:
    """Gives memory that nobody uses back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def saved_bytes(run: Callable[[], None], network: nn.Module) -> int:
    """Returns how many bytes ``run`` keeps for its backward pass, without the network's parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    seen: dict[int, int] = {}

    def measure(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        run()
    return sum(seen.values())
