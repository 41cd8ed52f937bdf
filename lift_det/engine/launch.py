"""Starting the processes of a training: detectron2's way, and torchrun's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.engine import launch as _launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed


def launch(
    main: Callable[..., None],
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = "auto",
    args: Sequence[Any] = (),
) -> None:
    """Calls ``main(*args)`` in each process of a training.

    Started by itself it is :func:`detectron2.engine.launch`, which starts ``num_gpus`` processes. Inside ``torchrun``
    the processes are there, and this one joins them: NCCL with GPUs, one for each process, gloo without.

    Args:
        main: what each process runs.
        num_gpus: processes on each machine; 1 inside torchrun, which has its own option for it, as for the others.
        num_machines: as upstream's.
        machine_rank: as upstream's.
        dist_url: as upstream's; torchrun has its own.
        args: of ``main``.

    Raises:
        ValueError: inside torchrun, more than one process is asked for, or there are more of them than GPUs.
    """
    if not distributed.is_torchelastic_launched():
        _launch(main, num_gpus, num_machines, machine_rank, dist_url, tuple(args))
        return
    if (num_gpus, num_machines, machine_rank) != (1, 1, 0):
        raise ValueError(
            f"Inside torchrun leave out --num-gpus, --num-machines and --machine-rank (got {num_gpus}, {num_machines}, "
            f"{machine_rank}): torchrun --nproc-per-node and --nnodes say how many processes there are."
        )
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        if local_size > torch.cuda.device_count():
            raise ValueError(
                f"torchrun --nproc-per-node {local_size}: this machine has {torch.cuda.device_count()} GPUs, and each "
                "process needs its own. (On CPUs hide the GPUs: CUDA_VISIBLE_DEVICES=.)"
            )
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    comm.synchronize()
    main(*args)
    distributed.destroy_process_group()
