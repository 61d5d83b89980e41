"""A small neural network: embeddings for categories, standardised numbers, a few hidden layers.

On several workers it trains with DistributedDataParallel: each worker holds a
share of the rows, and every step averages their gradients.
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from headrace.cluster import crew, gpus, listen, on_each
from headrace.problem import EDGE
from headrace.training.encoding import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from headrace.pipeline import Columns
    from headrace.problem import Problem

PACKAGES = ("torch", "safetensors")
FILE, SHAPE = "model.safetensors", "architecture.json"
PATIENCE = 120
"""Seconds workers wait for each other."""


@dataclass(frozen=True)
class Options:
    """The parameters of a torch candidate; ``batch`` counts the rows of a step on all workers together."""

    hidden: Sequence[int] = (64, 32)
    epochs: int = 4
    lr: float = 2e-3
    batch: int = 1024
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Architecture:
    """The network's shape: categories per categorical column, numeric columns, width of each layer.

    ``levels`` are the quantiles that the outputs stand for, where the objective asks for them.
    """

    categories: Sequence[int]
    numeric: int
    hidden: Sequence[int]
    objective: str = "binary"
    outputs: int = 1
    levels: Sequence[float] = ()


@dataclass(frozen=True)
class Job:
    """What to train: the same on every worker. ``mean`` and ``spread`` are those of the numeric columns.

    ``scale`` is where the targets lie and how far they reach: the network learns them so scaled.
    """

    options: Options
    shape: Architecture
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    seed: int
    scale: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Place:
    """A worker's part in the training; all meet at ``host:port``, where the first holds the ``listener``."""

    rank: int
    world: int
    gpu: bool
    host: str = ""
    port: int = 0
    listener: int = 0


@dataclass(frozen=True)
class Trained:
    """A network, and the encoder that it was trained through."""

    encoder: Encoder
    network: nn.Module


def fit(
    params: Mapping[str, Any],
    seed: int,
    rows: pa.Table,
    targets: NDArray[np.float64],
    *,
    columns: Columns,
    problem: Problem,
    client: Client,
) -> Trained:
    """Train a network with AdamW on the problem's loss; ``params`` are those of ``Options``."""
    import numpy as np
    from safetensors.torch import load as weights

    options = Options(**params)
    workers = crew(client)
    world = len(workers)
    encoder = Encoder.fit(rows, columns)
    matrix, truth = encoder.encode(rows), targets.astype(np.float32)
    shape = Architecture(
        [len(seen) for seen in encoder.categories.values()],
        len(encoder.numeric),
        list(options.hidden),
        problem.objective,
        problem.width,
        list(problem.levels),
    )
    moments = _moments(matrix[:, len(encoder.categories) :])
    job = Job(options, shape, *moments, seed, _scale(problem.objective, targets))
    meeting = listen(client, workers[0]) if world > 1 else ()
    # The same for all: a worker with one step more would wait for the others for ever.
    share = len(truth) // world
    work = [
        (job, matrix[r::world][:share], truth[r::world][:share], Place(r, world, gpus(workers), *meeting))
        for r in range(world)
    ]
    trained = on_each(client, workers, _train, work)[0]
    return Trained(encoder, _restored(shape, weights(trained)))


def _scale(objective: str, targets: NDArray[np.float64]) -> tuple[float, float]:
    """Return where ``targets`` lie and how far they reach; rates are learnt as logarithms."""
    import numpy as np

    if objective in ("binary", "classes"):
        return 0.0, 1.0
    if objective == "poisson":
        return float(np.log(max(targets.mean(), EDGE))), 1.0
    middle = float(targets.mean() if objective == "squared" else np.median(targets))
    reach = float(np.sqrt(((targets - middle) ** 2).mean()))
    return middle, reach or 1.0


def _moments(numbers: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each column's mean and standard deviation, nulls left out; 0 and 1 where there is nothing."""
    import numpy as np

    present = ~np.isnan(numbers)
    count = np.maximum(present.sum(axis=0), 1)
    mean = np.where(present, numbers, 0).sum(axis=0, dtype=np.float64) / count
    spread = np.sqrt((np.where(present, numbers - mean, 0) ** 2).sum(axis=0) / count)
    return mean.astype(np.float32), np.where(spread > 0, spread, 1).astype(np.float32)


def _train(job: Job, matrix: NDArray[np.float32], labels: NDArray[np.float32], place: Place) -> bytes:
    """Train on this worker's share, in step with the others; return the weights as safetensors."""
    with _repeatable(job.seed), _together(place):
        return _steps(job, matrix, labels, place)


def _steps(job: Job, matrix: NDArray[np.float32], labels: NDArray[np.float32], place: Place) -> bytes:
    import torch
    from safetensors.torch import save as packed

    options, device = job.options, "cuda" if place.gpu else "cpu"
    network = _network(job.shape)
    network.mean, network.spread = torch.from_numpy(job.mean), torch.from_numpy(job.spread)
    network.scale = torch.tensor(job.scale)
    network.to(device)
    step = torch.nn.parallel.DistributedDataParallel(network) if place.world > 1 else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    batch = max(options.batch // place.world, 1)
    total = options.epochs * -(-len(labels) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    inputs, truth = torch.from_numpy(matrix).to(device), torch.from_numpy(labels).to(device)
    shuffle = torch.Generator().manual_seed(job.seed * place.world + place.rank)
    for _ in range(options.epochs):
        for chosen in torch.split(torch.randperm(len(labels), generator=shuffle).to(device), batch):
            optimizer.zero_grad()
            loss = _loss(job.shape, step(inputs[chosen]), truth[chosen], network.scale)
            loss.backward()
            optimizer.step()
            schedule.step()
    return packed({name: weight.cpu() for name, weight in network.state_dict().items()})


def _loss(shape: Architecture, outputs: Tensor, truth: Tensor, scale: Tensor) -> Tensor:
    """Return the objective's mean loss of what the network puts out, before any link."""
    import torch
    from torch.nn import functional

    if shape.objective == "binary":
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], truth)
    if shape.objective == "classes":
        return functional.cross_entropy(outputs, truth.long())
    if shape.objective == "poisson":
        return functional.poisson_nll_loss(outputs[:, 0] + scale[0], truth)
    off = ((truth - scale[0]) / scale[1])[:, None] - outputs
    if shape.objective == "squared":
        return (off**2).mean()
    levels = torch.tensor(shape.levels or (0.5,), device=off.device)
    return torch.maximum(levels * off, (levels - 1) * off).mean()


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Make torch repeat itself inside the block, and leave the process as it was."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            torch.use_deterministic_algorithms(True)
            # Sums then never depend on the number of cores; a network this small gains nothing from a second.
            torch.set_num_threads(1)
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


@contextmanager
def _together(place: Place) -> Iterator[None]:
    """Join the process group of all workers, and leave it whatever happens: the others then fail at once.

    DistributedDataParallel must be gone before the group is, or its destructor may wait,
    holding the interpreter's lock, for a thread of the group that waits for that lock.
    """
    if place.world == 1:
        yield
        return
    from torch import distributed

    if place.host in ("127.0.0.1", "::1"):
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    patience, first = timedelta(seconds=PATIENCE), place.rank == 0
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        place.host,
        place.port,
        place.world,
        is_master=first,
        timeout=patience,
        master_listen_fd=place.listener if first else None,
    )
    backend = "nccl" if place.gpu else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.world, timeout=patience
    )
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        distributed.destroy_process_group()


def _network(shape: Architecture) -> Any:
    import torch
    from torch import nn

    class Network(nn.Module):
        mean: Tensor
        spread: Tensor
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.shape = shape
            sizes = [min(8, (n + 2) // 2) for n in shape.categories]
            # Row 0 stands for null and never seen, and stays zero.
            self.embeddings = nn.ModuleList(
                nn.Embedding(n + 1, size, padding_idx=0)
                for n, size in zip(shape.categories, sizes, strict=True)
            )
            width = sum(sizes) + 2 * shape.numeric
            layers: list[nn.Module] = []
            for hidden in shape.hidden:
                layers += [nn.Linear(width, hidden), nn.ReLU()]
                width = hidden
            self.head = nn.Sequential(*layers, nn.Linear(width, shape.outputs))
            self.register_buffer("mean", torch.zeros(shape.numeric))
            self.register_buffer("spread", torch.ones(shape.numeric))
            self.register_buffer("scale", torch.tensor((0.0, 1.0)))

        def forward(self, matrix: Tensor) -> Tensor:
            codes = (matrix[:, : len(shape.categories)] + 1).nan_to_num(0).long()
            embedded = [embed(codes[:, i]) for i, embed in enumerate(self.embeddings)]
            numbers = matrix[:, len(shape.categories) :]
            # Next season's weather lies outside this one's: unclamped, the network extrapolates far
            # (trained January to March, its log-loss in July falls from 0.77 to 0.63).
            scaled = ((numbers - self.mean) / self.spread).nan_to_num(0).clamp(-2, 2)
            outputs: Tensor = self.head(torch.cat([*embedded, scaled, numbers.isnan().float()], dim=1))
            return outputs

    return Network()


def predict(native: Trained, rows: pa.Table) -> NDArray[np.float32]:
    """Return what the network says of ``rows``: probabilities, rates or values."""
    import numpy as np
    import torch

    network, matrix = native.network, torch.from_numpy(native.encoder.encode(rows))
    with torch.inference_mode():
        parts = [_linked(network, network(part)).numpy() for part in torch.split(matrix, 65_536)]
    return np.concatenate(parts)


def _linked(network: Any, outputs: Tensor) -> Tensor:
    import torch

    if network.shape.objective == "binary":
        return torch.sigmoid(outputs)
    if network.shape.objective == "classes":
        return torch.softmax(outputs, dim=1)
    if network.shape.objective == "poisson":
        return torch.exp(outputs + network.scale[0])
    return outputs * network.scale[1] + network.scale[0]


def save(native: Trained, directory: Path) -> None:
    """Write the weights as safetensors, and the architecture beside them."""
    from safetensors.torch import save_file

    native.encoder.save(directory)
    save_file(native.network.state_dict(), directory / FILE)
    shape: Any = native.network.shape
    (directory / SHAPE).write_text(json.dumps(asdict(shape), indent=1) + "\n")


def load(directory: Path) -> Trained:
    """Read what ``save`` wrote."""
    from safetensors.torch import load_file

    shape = Architecture(**json.loads((directory / SHAPE).read_text()))
    return Trained(Encoder.load(directory), _restored(shape, load_file(directory / FILE)))


def _restored(shape: Architecture, weights: Mapping[str, Tensor]) -> nn.Module:
    import torch

    with torch.device(
        "meta"
    ):  # no weights of its own, and so no random numbers drawn from the process's stream
        network: nn.Module = _network(shape)
    network.load_state_dict(weights, assign=True)
    return network.eval()
