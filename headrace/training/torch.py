"""A small neural network: embeddings for categories, standardised numbers, a few hidden layers.

On several workers it trains with DistributedDataParallel: each worker holds a
share of the rows, and every step averages their gradients.
"""

from __future__ import annotations

import os
import socket
import traceback
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from headrace.cluster import crew, gpus, listen, on_each
from headrace.training.encoding import Encoder
from headrace.training.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from headrace.pipeline import Columns

DISTRIBUTION = "torch"
FILE = "model.safetensors"
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
    """The network's shape: categories per categorical column, numeric columns, width of each hidden layer."""

    categories: Sequence[int]
    numeric: int
    hidden: Sequence[int]


@dataclass(frozen=True)
class Job:
    """What to train: the same on every worker. ``mean`` and ``spread`` are those of the numeric columns."""

    options: Options
    shape: Architecture
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    seed: int


@dataclass(frozen=True)
class Place:
    """A worker's part in the training; all meet at ``host:port``, where the first holds the ``listener``."""

    rank: int
    world: int
    gpu: bool
    host: str = ""
    port: int = 0
    listener: int = 0


def fit(
    params: Mapping[str, Any],
    seed: int,
    rows: pa.Table,
    labels: NDArray[np.integer],
    *,
    columns: Columns,
    client: Client,
) -> Model:
    """Train a network with AdamW on the log-loss; ``params`` are those of ``Options``."""
    import numpy as np
    from safetensors.torch import load as weights

    options = Options(**params)
    workers = crew(client)
    world = len(workers)
    encoder = Encoder.fit(rows, columns)
    matrix, truth = encoder.encode(rows), labels.astype(np.float32)
    shape = Architecture(
        [len(seen) for seen in encoder.categories.values()], len(encoder.numeric), options.hidden
    )
    job = Job(options, shape, *_moments(matrix[:, len(encoder.categories) :]), seed)
    meeting = listen(client, workers[0]) if world > 1 else ()
    # The same for all: a worker with one step more would wait for the others for ever.
    share = len(truth) // world
    work = [
        (job, matrix[r::world][:share], truth[r::world][:share], Place(r, world, gpus(workers), *meeting))
        for r in range(world)
    ]
    trained = on_each(client, workers, _train, work)[0]
    return Model("torch", encoder, _restored(shape, weights(trained)))


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
            loss = torch.nn.functional.binary_cross_entropy_with_logits(step(inputs[chosen]), truth[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
    return packed({name: weight.cpu() for name, weight in network.state_dict().items()})


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
            self.head = nn.Sequential(*layers, nn.Linear(width, 1))
            self.register_buffer("mean", torch.zeros(shape.numeric))
            self.register_buffer("spread", torch.ones(shape.numeric))

        def forward(self, matrix: Tensor) -> Tensor:
            codes = (matrix[:, : len(shape.categories)] + 1).nan_to_num(0).long()
            embedded = [embed(codes[:, i]) for i, embed in enumerate(self.embeddings)]
            numbers = matrix[:, len(shape.categories) :]
            # Next season's weather lies outside this one's: unclamped, the network extrapolates far
            # (trained January to March, its log-loss in July falls from 0.77 to 0.63).
            scaled = ((numbers - self.mean) / self.spread).nan_to_num(0).clamp(-2, 2)
            logits: Tensor = self.head(torch.cat([*embedded, scaled, numbers.isnan().float()], dim=1))
            return logits.squeeze(1)

    return Network()


def predict(network: nn.Module, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probability of class 1 for each row of the encoded ``matrix``."""
    import numpy as np
    import torch

    with torch.inference_mode():
        parts = [
            torch.sigmoid(network(part)).numpy() for part in torch.split(torch.from_numpy(matrix), 65_536)
        ]
    return np.concatenate(parts)


def save(network: nn.Module, directory: Path) -> dict[str, Any]:
    """Write the weights as safetensors; return the architecture to put beside them."""
    from safetensors.torch import save_file

    save_file(network.state_dict(), directory / FILE)
    shape: Architecture = network.shape  # type: ignore[assignment]
    return asdict(shape)


def load(directory: Path, architecture: Mapping[str, Any]) -> nn.Module:
    """Read what ``save`` wrote."""
    from safetensors.torch import load_file

    return _restored(Architecture(**architecture), load_file(directory / FILE))


def _restored(shape: Architecture, weights: Mapping[str, Tensor]) -> nn.Module:
    import torch

    with torch.device(
        "meta"
    ):  # no weights of its own, and so no random numbers drawn from the process's stream
        network: nn.Module = _network(shape)
    network.load_state_dict(weights, assign=True)
    return network.eval()
