"""Several processes that train one network together, started by torchrun; rank 0 alone speaks and writes.

A process that torchrun has not started is the only one: rank 0 of 1, and nothing here communicates. One that
torchrun has started alone is rank 0 of 1, too, but does all that several do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import ConfigError, ElsewhereError, LostRankError, UserError

T = TypeVar("T")


def in_group() -> bool:
    """Whether this process is in a process group, perhaps alone: all of it communicate at the same places."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process."""
    return distributed.get_rank() if in_group() else 0


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if in_group() else 1


def on_this_machine() -> int:
    """How many of them share this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if in_group() else 1


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process, alone or with others."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    # Other programs may say, too, that a process is the only one; there is nobody to meet then.
    return several or {"WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


@contextmanager
def joined() -> Iterator[None]:
    """While entered, this process is in a group with those that torchrun has started, if it started any.

    Raises:
        LostRankError: where one of the others was waited for, and is gone.
    """
    if not started_by_torchrun():
        yield
        return
    # By itself torch takes nccl alone where there is a GPU, and then nothing on the CPU can be exchanged.
    on_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    with naming_the_loss():
        yield
    # Only then: where a process is gone, nccl would wait for it here, too.
    leave()


@contextmanager
def naming_the_loss() -> Iterator[None]:
    """Whatever torch raises where another process is gone becomes a `LostRankError`."""
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no type of their own.
        if not (in_group() and (isinstance(error, distributed.DistError) or "gloo" in str(error))):
            raise
        first = str(error).partition(". ")[0].splitlines()[0]
        raise LostRankError(f"another process is gone, which may have said why: {first}") from error


def leave() -> None:
    """From here on this process is the only one."""
    if in_group():
        distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """The device of this process, of that kind: of several GPUs, each has its own.

    Raises:
        ConfigError: if there is none for it.
    """
    if device.type == "cpu" or not in_group():
        return device
    place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if place >= gpus:
        raise ConfigError(
            f"device: {on_this_machine()} processes on this machine, but torch sees {gpus} GPUs; "
            f"start torchrun with --nproc-per-node {gpus}"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """A model whose gradients are, after backward, the mean over the processes."""
    if not in_group():
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def start_over(model: nn.Module) -> None:
    """Ready a model of `parallel` for another forward pass, after one or a backward pass that was cut off."""
    if isinstance(model, DistributedDataParallel):
        if model.device_type == "cuda":
            # What was being exchanged is to arrive before the next pass writes to the same place.
            torch.cuda.synchronize()
        # It forgets which gradients it has seen, also where the group stays the same.
        model._update_process_group(model.process_group)  # type: ignore[no-untyped-call]


def seed_step(seed: int, step: int) -> None:
    """Where several processes train, each draws its own random numbers (dropout), a function of the step."""
    if count() > 1:
        torch.manual_seed(hash((seed, step, rank())) % 2**63)


def share(size: int) -> range:
    """Which of so many are this process's own: every so-manieth, so that shares differ by one at most."""
    return range(rank(), size, count())


def mean(value: Tensor) -> Tensor:
    """The mean over the processes, without a gradient."""
    if not in_group():
        return value
    total = value.detach().float()
    distributed.all_reduce(total)
    return total / count()


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if not in_group():
        return number
    value = torch.tensor(number)
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return int(value)


def total(values: Tensor) -> Tensor:
    """The sum over the processes."""
    if in_group():
        distributed.all_reduce(values)
    return values


def in_turn(own: Tensor) -> Tensor:
    """Of values that were shared out by `share`, one a row, all of them in their order."""
    if not in_group():
        return own
    parts: list[Any] = [None] * count()
    distributed.all_gather_object(parts, own.cpu())
    whole = own.cpu().new_empty(sum(map(len, parts)), *own.shape[1:])
    for number, part in enumerate(parts):
        whole[number :: count()] = part
    return whole


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in rank 0, which alone calls it.

    Raises:
        UserError: that `make` raises; `ElsewhereError` in all other processes.
    """
    if not in_group():
        return make()
    made: list[Any] = [None]
    if rank():
        distributed.broadcast_object_list(made)
        if isinstance(made[0], ElsewhereError):
            raise made[0]
    else:
        try:
            made = [make()]
        except BaseException:
            distributed.broadcast_object_list([ElsewhereError()])
            raise
        distributed.broadcast_object_list(made)
    result: T = made[0]
    return result


@contextmanager
def agreed() -> Iterator[None]:
    """What goes wrong inside, in one process or in all, ends all of them, and the first of those says it.

    Nothing inside may communicate.

    Raises:
        UserError: that was raised inside; `ElsewhereError` in all processes but the first that has one.
    """
    found: UserError | None = None
    try:
        yield
    except UserError as error:
        found = error
    if in_group():
        failed: list[Any] = [None] * count()
        distributed.all_gather_object(failed, found is not None)
        if any(failed) and failed.index(True) != rank():
            found = ElsewhereError()
    if found:
        raise found


def one_voice(error: UserError) -> UserError:
    """An error that every process has found: in rank 0 the error, in the others one that is not said."""
    return ElsewhereError() if rank() else error


def same_everywhere(model: nn.Module) -> None:
    """See that a model has the same weights in all processes; its buffers are made those of rank 0.

    Raises:
        UserError: if a process has others; it says which.
    """
    if not in_group():
        return
    for buffer in model.buffers():
        distributed.broadcast(buffer, 0)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    digests: list[Any] = [None] * count()
    distributed.all_gather_object(digests, digest.hexdigest())
    if other := others(digests):
        named = ", ".join(map(str, other))
        raise one_voice(
            UserError(
                f"the weights of rank {named} are not those of the other ranks, of {count()}: a process has "
                "computed something else; look at its machine, then go on from the last state"
            )
        )


def others(digests: Sequence[str]) -> list[int]:
    """Which processes differ from what most have; of as many, from what rank 0 has."""
    usual = max(digests, key=digests.count)
    return [number for number, digest in enumerate(digests) if digest != usual]
