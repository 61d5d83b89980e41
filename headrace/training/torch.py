"""A small neural network: embeddings for categories, standardised numbers, a few hidden layers.

On several workers it trains with DistributedDataParallel: each worker reads a
share of the rows, and every step averages their gradients.
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headrace.cluster import crew, gpus, listen, on_each
from headrace.problem import EDGE
from headrace.training.encoding import Encoder
from headrace.training.rows import WEIGHT
from headrace.training.trainers import hopeless

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from headrace.pipeline import Columns
    from headrace.problem import Problem
    from headrace.training.rows import Rows

PACKAGES = ("torch", "safetensors")
PLAIN = True
FILE, SHAPE = "model.safetensors", "architecture.json"
PATIENCE = 120
"""Seconds workers wait for each other."""


@dataclass(frozen=True)
class Options:
    """The parameters of a torch candidate; ``batch`` counts the rows of a step on all workers together.

    ``blocks`` are residual ones, as wide as the last of ``hidden``, after it. ``precision`` may be
    ``bf16``: products are then of that type, which recent GPUs are several times faster at. With
    ``early_stopping_rounds`` training stops when the selection has lost nothing for so many epochs,
    and the best is kept. ``horizon`` is over how many epochs step sizes fall, if not ``epochs``.
    """

    hidden: Sequence[int] = (64, 32)
    blocks: int = 0
    epochs: int = 4
    lr: float = 2e-3
    batch: int = 1024
    weight_decay: float = 0.01
    precision: Literal["32", "bf16"] = "32"
    early_stopping_rounds: int = 0
    horizon: int = 0


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
    blocks: int = 0


@dataclass(frozen=True)
class Job:
    """What to train: the same on every worker. ``mean`` and ``spread`` are those of the numeric columns.

    ``scale`` is where the targets lie and how far they reach: the network learns them so scaled.
    ``selection`` is looked at after each epoch. ``each`` is how many rows a worker learns from, whose
    weights have the mean ``weight``.
    """

    options: Options
    shape: Architecture
    encoder: Encoder
    problem: Problem
    selection: Rows | None
    each: int
    weight: float
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    seed: int
    scale: tuple[float, float] = (0.0, 1.0)
    give_up: Mapping[int, float] = field(default_factory=dict)

    @property
    def horizon(self) -> int:
        """Over how many epochs step sizes fall."""
        return self.options.horizon or self.options.epochs


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
    """A network, the encoder it was trained through; ``settled`` and ``history`` as trainers have them."""

    encoder: Encoder
    network: nn.Module
    settled: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)


def fit(
    params: Mapping[str, Any],
    seed: int,
    rows: Rows,
    *,
    columns: Columns,
    problem: Problem,
    client: Client | None,
    selection: Rows | None,
    give_up: Mapping[int, float],
) -> Trained:
    """Train a network with AdamW on the problem's loss; ``params`` are those of ``Options``."""
    from safetensors.torch import load as weights

    options = Options(**params)
    workers = crew(client)
    world = len(workers)
    encoder = Encoder.fit(rows, columns)
    shape = Architecture(
        [len(seen) for seen in encoder.categories.values()],
        len(encoder.numeric),
        list(options.hidden),
        problem.objective,
        problem.width,
        list(problem.levels),
        options.blocks,
    )
    shares = [rows.share(rank, world) for rank in range(world)]
    read = on_each(client, workers, _looked_at, [(share, encoder, problem) for share in shares])
    targets, weights_of = (np.concatenate([share[part] for share in read]) for part in (1, 2))
    job = Job(
        options,
        shape,
        encoder,
        problem,
        selection,
        rows.count // world,  # the same for all: one with a step more would wait for the others for ever
        float(weights_of.mean()) if len(weights_of) else 1.0,
        *_spread(_merged([moments for moments, *_ in read])),
        seed,
        _scale(problem.objective, targets),
        give_up,
    )
    meeting = listen(client, workers[0]) if client and world > 1 else ()
    work = [(job, share, Place(r, world, gpus(workers), *meeting)) for r, share in enumerate(shares)]
    trained, history = on_each(client, workers, _train, work)[0]
    settled = {}
    if options.early_stopping_rounds and selection:
        # Step sizes then fall as they did, towards an end that is not reached.
        settled = {"epochs": int(np.argmin(history["selection/loss"])) + 1, "horizon": job.horizon}
    return Trained(encoder, _restored(shape, weights(trained)), settled, history)


def _looked_at(
    rows: Rows, encoder: Encoder, problem: Problem
) -> tuple[Moments, NDArray[np.float64], NDArray[np.float64]]:
    """Return the moments of the numeric columns, all targets, and all weights; read part by part."""
    found, targets, weights = [], [], [np.empty(0)]
    for part in rows.parts():
        found.append(_moments(encoder.encode(part)[:, len(encoder.categories) :]))
        targets.append(problem.encode(part["label"]))
        if WEIGHT in part.column_names:
            weights.append(part[WEIGHT].to_numpy())
    return _merged(found), np.concatenate(targets), np.concatenate(weights)


def _scale(objective: str, targets: NDArray[np.float64]) -> tuple[float, float]:
    """Return where ``targets`` lie and how far they reach; rates are learnt as logarithms."""
    if objective in ("binary", "classes"):
        return 0.0, 1.0
    if objective == "poisson":
        return float(np.log(max(targets.mean(), EDGE))), 1.0
    middle = float(targets.mean() if objective == "squared" else np.median(targets))
    reach = float(np.sqrt(((targets - middle) ** 2).mean()))
    return middle, reach or 1.0


@dataclass(frozen=True)
class Moments:
    """Of each column: how many values it has, their mean, and the sum of their squared distances from it."""

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]


def _moments(numbers: NDArray[np.float32]) -> Moments:
    present = ~np.isnan(numbers)
    count = present.sum(axis=0)
    mean = np.where(present, numbers, 0).sum(axis=0, dtype=np.float64) / np.maximum(count, 1)
    return Moments(count, mean, (np.where(present, numbers - mean, 0) ** 2).sum(axis=0))


def _merged(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all parts together (Chan, Golub and LeVeque, 1983)."""
    whole, *others = parts
    for part in others:
        count = np.maximum(whole.count + part.count, 1)
        off = part.mean - whole.mean
        mean = whole.mean + off * part.count / count
        squares = whole.squares + part.squares + off**2 * whole.count * part.count / count
        whole = Moments(whole.count + part.count, mean, squares)
    return whole


def _spread(found: Moments) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each column's mean and standard deviation; 0 and 1 where there is nothing."""
    spread = np.sqrt(found.squares / np.maximum(found.count, 1))
    return found.mean.astype(np.float32), np.where(spread > 0, spread, 1).astype(np.float32)


def _train(job: Job, rows: Rows, place: Place) -> tuple[bytes, dict[str, list[float]]]:
    """Train on this worker's share, in step with others; return the network, as safetensors, and losses."""
    with _repeatable(job.seed), _together(place):
        return _steps(job, rows, place)


def _steps(job: Job, rows: Rows, place: Place) -> tuple[bytes, dict[str, list[float]]]:
    import torch

    def numbers(of: Rows, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        learnt = job.encoder.learnt(of, job.problem)
        weights = np.full(len(learnt.targets), job.weight) if learnt.weights is None else learnt.weights
        found = (learnt.matrix, learnt.targets, weights / job.weight)
        inputs, truth, counts = (torch.from_numpy(one[:most].astype(np.float32)) for one in found)
        return inputs.to(device), truth.to(device), counts.to(device)

    def losses(of: Any, inputs: Tensor, truth: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
            outputs = of(inputs)
        return _losses(job.shape, outputs.float(), truth, network.scale)

    options, device = job.options, "cuda" if place.gpu else "cpu"
    network = _network(job.shape)
    network.mean, network.spread = torch.from_numpy(job.mean), torch.from_numpy(job.spread)
    network.scale = torch.tensor(job.scale)
    network.to(device)
    step = torch.nn.parallel.DistributedDataParallel(network) if place.world > 1 else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    batch = max(options.batch // place.world, 1)
    total = job.horizon * -(-job.each // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    inputs, truth, counts = numbers(rows, job.each)
    watched = numbers(job.selection) if job.selection and place.rank == 0 else None
    history: dict[str, list[float]] = {"train/loss": [], **({"selection/loss": []} if job.selection else {})}
    best = b""
    shuffle = torch.Generator().manual_seed(job.seed * place.world + place.rank)
    for epoch in range(options.epochs):
        lost = torch.zeros(1, device=device)
        for chosen in torch.split(torch.randperm(job.each, generator=shuffle).to(device), batch):
            optimizer.zero_grad()
            loss = (losses(step, inputs[chosen], truth[chosen]) * counts[chosen]).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            lost += loss.detach() * len(chosen)
        history["train/loss"].append(float(lost) / job.each)
        if not job.selection:
            continue
        found = torch.zeros(1, device=device)
        if watched:
            with torch.inference_mode():
                parts = zip(*(torch.split(part, 65_536) for part in watched), strict=True)
                found += sum((losses(network, x, y) * w).sum() for x, y, w in parts) / len(watched[0])
        if place.world > 1:  # all do what the first one sees
            torch.distributed.broadcast(found, 0)
        history["selection/loss"].append(float(found))
        if options.early_stopping_rounds:
            least = int(np.argmin(history["selection/loss"]))
            if least == epoch:
                best = _packed(network)
            if epoch - least >= options.early_stopping_rounds:
                break
        if hopeless(history, job.give_up):
            break
    return best or _packed(network), history


def _packed(network: nn.Module) -> bytes:
    from safetensors.torch import save

    return save({name: weight.cpu() for name, weight in network.state_dict().items()})


def _losses(shape: Architecture, outputs: Tensor, truth: Tensor, scale: Tensor) -> Tensor:
    """Return the objective's loss, row by row, of what the network puts out, before any link."""
    import torch
    from torch.nn import functional

    if shape.objective == "binary":
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], truth, reduction="none")
    if shape.objective == "classes":
        return functional.cross_entropy(outputs, truth.long(), reduction="none")
    if shape.objective == "poisson":
        return functional.poisson_nll_loss(outputs[:, 0] + scale[0], truth, reduction="none")
    off = ((truth - scale[0]) / scale[1])[:, None] - outputs
    if shape.objective == "squared":
        return (off**2).mean(dim=1)
    levels = torch.tensor(shape.levels or (0.5,), device=off.device)
    return torch.maximum(levels * off, (levels - 1) * off).mean(dim=1)


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

    class Residual(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            layers = nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
            self.off = nn.Sequential(*layers)

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + self.off(inputs)  # type: ignore[no-any-return]

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
            layers += [Residual(width) for _ in range(shape.blocks)]
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


def predict(native: Trained, rows: pa.Table | Mapping[str, Sequence[Any]]) -> NDArray[np.float32]:
    """Return what the network says of ``rows``: probabilities, rates or values."""
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
