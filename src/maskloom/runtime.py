"""Where and how computing happens: device, precision, seeds, threads. Imports torch only when asked."""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.errors import UserError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bf16", "fp16"]


def derive_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed from (seed, epoch, record, draw, …): the same on every machine and for every worker."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """Returns a NumPy generator seeded by ``derive_seed(*parts)``."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


def choose_device(name: str | None = None) -> torch.device:
    """Returns the device of that name, or CUDA where there is one, else the CPU; refuses a device that is absent."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r}: expected cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device was found; use --device cpu or leave the option out")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r}: expected cpu, cuda or cuda:N")
    return device


def rank_devices(device: torch.device, count: int) -> tuple[torch.device, ...]:
    """Returns ``count`` devices on which processes train one network together: that GPU and those after it, or CPUs.

    Raises ``UserError`` where there are not so many GPUs.
    """
    import torch

    if count < 1:
        raise UserError(f"devices per network: expected at least 1, found {count}")
    if count == 1 or device.type == "cpu":
        return (device,) * count
    first, present = device.index or 0, torch.cuda.device_count()
    if first + count > present:
        raise UserError(
            f"devices per network: expected {count} GPUs from {device.type}:{first} on, found {max(present - first, 0)}"
            "; ask for fewer"
        )
    return tuple(torch.device(device.type, first + number) for number in range(count))


def fast_precision(device: torch.device) -> Precision:
    """Returns bf16 where the device computes it natively, else float32 (CPU) or fp16 (older GPUs)."""
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capability = torch.backends.cpu.get_cpu_capability()
    has_bf16 = "AVX512" in capability and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 else "float32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Returns the context in which networks run at ``precision`` on ``device``."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


def make_deterministic() -> None:
    """Asks torch for the same result every time, where the device offers it; warns about the rest."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Every buffer is written before it is read; filling them first would cost a sixth of the training time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Asks the C library to keep large freed buffers for the next step instead of returning them to the system.

    Networks free and take the same buffers in every step; on the CPU, paging them in anew costs up to a third of the
    time. To be asked before any thread is started: threads share one arena then, while those that got one of their own
    keep it, and what later threads scatter over these adds up to the largest memory. Does nothing where the C library
    is not glibc.
    """
    import ctypes

    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(arena_max, 1)  # or every reading and writing thread keeps freed images of its own
    except (OSError, AttributeError):
        return


def return_freed_memory() -> None:
    """Gives all freed buffers back to the system, where ``keep_freed_memory`` would keep them.

    For moments at which other sizes of buffers begin to be taken: scattered between the freed ones, they make every
    step slower for as long as they are taken (images of 512×512 after such of 256×256: by a quarter). Does nothing
    where the C library is not glibc.
    """
    import ctypes

    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def free_memory() -> int:
    """Returns the bytes this process may still take: the system's free memory, or its container's if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return max(min(free, int(limit.read_text()) - int(used.read_text())), 0)
    except (OSError, ValueError):  # no container, or "max": no limit of its own
        return free


def json_budget() -> int:
    """Returns the bytes of JSON for which there is memory: its values take six times as many, and are worked with."""
    return free_memory() // 8


def num_cores() -> int:
    """Returns the processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(device: torch.device) -> dict[str, str | int | float]:
    """Returns the facts a report quotes: processor, cores, memory, device name, versions."""
    import psutil
    import torch

    facts: dict[str, str | int | float] = {
        "system": platform.platform(terse=True),
        "processor": _processor_name(),
        "cores": num_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
