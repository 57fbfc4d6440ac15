"""The ranks that train one network together, started by torchrun; only rank 0 speaks and writes.

A process that torchrun has not started is rank 0 of 1, and nothing here communicates. One that torchrun has
started alone is rank 0 of 1, too, but does all that several do.
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
    """Whether this process is in a process group, perhaps alone; its ranks communicate at the same places."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The rank of this process."""
    return distributed.get_rank() if in_group() else 0


def world_size() -> int:
    """How many ranks train together."""
    return distributed.get_world_size() if in_group() else 1


def on_this_machine() -> int:
    """How many of them share this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if in_group() else 1


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process, alone or with others."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    # Other programs may say, too, that the world size is 1; there is nobody to meet then.
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
    # Only then: where a rank is gone, nccl would wait for it here, too.
    leave()


@contextmanager
def naming_the_loss() -> Iterator[None]:
    """Whatever torch raises where another rank is gone becomes a `LostRankError`."""
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no type of their own.
        if not (in_group() and (isinstance(error, distributed.DistError) or "gloo" in str(error))):
            raise
        first = str(error).partition(". ")[0].splitlines()[0]
        raise LostRankError(f"another rank is gone, which may have said why: {first}") from error


def leave() -> None:
    """From here on the world size is 1."""
    if in_group():
        distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """This rank's own device of the kind of `device`: each rank of a machine has its own GPU.

    Raises:
        ConfigError: if there is none for it.
    """
    if device.type == "cpu" or not in_group():
        return device
    place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if place >= gpus:
        raise ConfigError(
            f"device: {on_this_machine()} ranks on this machine, but torch sees {gpus} GPUs; "
            f"start torchrun with --nproc-per-node {gpus}"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """A model whose gradients are, after backward, the mean over the ranks."""
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
    """Where several ranks train, each draws its own random numbers (dropout), a function of the step."""
    if world_size() > 1:
        torch.manual_seed(hash((seed, step, rank())) % 2**63)


def share(size: int) -> range:
    """Which of `size` items are this rank's: rank, rank + world size, ...; shares differ by one at most."""
    return range(rank(), size, world_size())


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean over the ranks, without a gradient."""
    if not in_group():
        return value
    total = value.detach().float()
    distributed.all_reduce(total)
    return total / world_size()


def all_reduce_max(number: int) -> int:
    """The largest of the ranks' numbers."""
    if not in_group():
        return number
    value = torch.tensor(number)
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return int(value)


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over the ranks."""
    if in_group():
        distributed.all_reduce(values)
    return values


def gather(own: Tensor) -> Tensor:
    """All values that were shared out by `share`, one a row, in their order."""
    if not in_group():
        return own
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, own.cpu())
    whole = own.cpu().new_empty(sum(map(len, parts)), *own.shape[1:])
    for number, part in enumerate(parts):
        whole[number :: world_size()] = part
    return whole


def from_rank_zero(make: Callable[[], T]) -> T:
    """What `make` returns in rank 0, which alone calls it.

    Raises:
        UserError: that `make` raises; `ElsewhereError` on all other ranks.
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
def raise_on_all_ranks() -> Iterator[None]:
    """An error inside, on one rank or on all, is raised on all ranks; the first one that has it says it.

    Nothing inside may communicate.

    Raises:
        UserError: that was raised inside; `ElsewhereError` on all ranks but the first that has one.
    """
    found: UserError | None = None
    try:
        yield
    except UserError as error:
        found = error
    if in_group():
        failed: list[Any] = [None] * world_size()
        distributed.all_gather_object(failed, found is not None)
        if any(failed) and failed.index(True) != rank():
            found = ElsewhereError()
    if found:
        raise found


def raised_by_rank_zero(error: UserError) -> UserError:
    """An error that every rank has found: on rank 0 the error, on the others one that is not said."""
    return ElsewhereError() if rank() else error


def check_same_weights(model: nn.Module) -> None:
    """See that a model has the same weights on all ranks; its buffers are made those of rank 0.

    Raises:
        UserError: if a rank has others; it says which.
    """
    if not in_group():
        return
    for buffer in model.buffers():
        distributed.broadcast(buffer, 0)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    digests: list[Any] = [None] * world_size()
    distributed.all_gather_object(digests, digest.hexdigest())
    if other := differing(digests):
        named = ", ".join(map(str, other))
        raise raised_by_rank_zero(
            UserError(
                f"the weights of rank {named} are not those of the other ranks, of {world_size()}: a rank "
                "has computed something else; look at its machine, then go on from the last state"
            )
        )


def differing(digests: Sequence[str]) -> list[int]:
    """Which ranks differ from what most have; in a tie, from what rank 0 has."""
    usual = max(digests, key=digests.count)
    return [number for number, digest in enumerate(digests) if digest != usual]
