"""Other ways to predict, then update, one record after another; each on the same records and the same model.

A function here makes one method ready for one task and gives a :class:`Side`: how many records a call learns, and the
call. Packages that are not installed raise ImportError, and ``throughput.py`` says so in the table.

Shapes: N records of a task, D inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from millstream.contracts import Inputs

# JAX reads them when it is first imported.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

OPTIMIZERS: dict[str, functools.partial[Any]] = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.01),
    "momentum": functools.partial(torch.optim.SGD, lr=0.001, momentum=0.9, weight_decay=1e-4),
    "Adam": functools.partial(torch.optim.Adam, lr=0.001),
    "Adagrad": functools.partial(torch.optim.Adagrad, lr=0.01),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its optimizer and its records."""

    title: str
    optimizer: str  # a key of OPTIMIZERS
    build: Callable[[], nn.Module]
    records: Callable[[], tuple[Inputs, Tensor]]  # N inputs; (N,) int64 classes or (N,) float32 of 0 and 1
    widths: tuple[int, ...] = ()  # of a model of dense layers: inputs, hidden layers, outputs

    def train(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = self.build()
        return model, OPTIMIZERS[self.optimizer](model.parameters())


@dataclasses.dataclass
class Side:
    """One method, ready to be timed: ``run(first)`` predicts and learns the records first … first + portion − 1."""

    portion: int
    num: int  # N
    run: Callable[[int], object]
    before: Callable[[], object] = lambda: None  # what a call needs and nobody wants timed
    first: int = 0

    def forward(self) -> int:
        """The first record of the next call: the records over and over, in order."""
        first = self.first if self.first + self.portion <= self.num else 0
        self.first = first + self.portion
        return first


def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets)
    return nn.functional.cross_entropy(outputs, targets)


def _stepped(name: str, parameter: Any, gradient: Any, state: Sequence[Any], count: Any) -> tuple[Any, Sequence[Any]]:
    """One step as torch defines it, in arithmetic that torch and JAX both know: the new parameter and the new state."""
    settings = OPTIMIZERS[name].keywords
    rate = settings["lr"]
    if name == "SGD":
        return parameter - rate * gradient, state
    if name == "momentum":
        buffer = settings["momentum"] * state[0] + gradient + settings["weight_decay"] * parameter
        return parameter - rate * buffer, [buffer]
    mean, square = 0.9 * state[0] + 0.1 * gradient, 0.999 * state[1] + 0.001 * gradient * gradient
    scale = (square / (1 - 0.999**count)) ** 0.5 + 1e-8
    return parameter - rate / (1 - 0.9**count) * mean / scale, [mean, square]


NUM_STATES = {"SGD": 0, "momentum": 1, "Adam": 2}


def compiled_step(task: Task, x: Tensor, y: Tensor) -> Side:
    """`torch.compile` of the whole step, optimizer included: one graph, weights changed in place."""
    model, _ = task.train()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    states = {name: [torch.zeros_like(p) for _ in range(NUM_STATES[task.optimizer])] for name, p in parameters.items()}
    count = torch.zeros(())

    def score(weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = torch.func.functional_call(model, weights, (inputs,))
        return criterion(outputs, targets), outputs

    def step(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        gradients, (loss, outputs) = torch.func.grad_and_value(score, has_aux=True)(parameters, inputs, targets)
        count.add_(1)
        for name, parameter in parameters.items():
            new, state = _stepped(task.optimizer, parameter, gradients[name], states[name], count)
            parameter.copy_(new)
            for old, value in zip(states[name], state, strict=True):
                old.copy_(value)
        return loss, outputs

    compiled = torch.compile(step, fullgraph=True)

    @torch.no_grad()
    def run(first: int) -> None:
        for place in range(first, first + 128):
            compiled(x[place : place + 1], y[place : place + 1])

    return Side(128, len(y), run)


def jax_scan(task: Task, x: Tensor, y: Tensor) -> Side:
    """`lax.scan` over records under `jit`; outputs and losses are handed back, weights are given in and taken out."""
    import jax

    with _one_core():
        jax.devices()  # its pool has as many threads as there are cores now, whatever the flags say of convolutions
    forward = _jax_dense if task.widths else _jax_lenet
    weights = [jax.numpy.asarray(p.detach().numpy()) for p in task.train()[0].parameters()]

    def score(weights: list[Any], record: Any, label: Any) -> tuple[Any, Any]:
        outputs = forward(jax, weights, record)
        return -jax.nn.log_softmax(outputs)[label], outputs

    def step(carry: Any, record: Any) -> tuple[Any, Any]:
        weights, states, count = carry
        (loss, outputs), gradients = jax.value_and_grad(score, has_aux=True)(weights, *record)
        count = count + 1
        pairs = [_stepped(task.optimizer, *each, count) for each in zip(weights, gradients, states, strict=True)]
        return ([new for new, _ in pairs], [state for _, state in pairs], count), (outputs, loss)

    learn = jax.jit(lambda carry, inputs, labels: jax.lax.scan(step, carry, (inputs, labels)), donate_argnums=0)
    zeros = [[jax.numpy.zeros_like(w) for _ in range(NUM_STATES[task.optimizer])] for w in weights]
    carry = [(weights, zeros, jax.numpy.zeros(()))]
    inputs, labels = x.numpy(), y.numpy().astype(np.int32)

    def run(first: int) -> None:
        carry[0], found = learn(carry[0], inputs[first : first + 1024], labels[first : first + 1024])
        jax.block_until_ready((carry[0], found))

    return Side(1024, len(y), run)


def _jax_dense(jax: Any, weights: list[Any], values: Any) -> Any:
    """The model of `throughput.dense`: a ReLU after each layer but the last, or after the only one."""
    num = len(weights) // 2
    for layer in range(num):
        values = weights[2 * layer] @ values + weights[2 * layer + 1]
        if layer < num - 1 or num == 1:
            values = jax.nn.relu(values)
    return values


def _jax_lenet(jax: Any, weights: list[Any], image: Any) -> Any:
    values = image[None]
    for place, padding in ((0, "SAME"), (2, "VALID")):
        values = jax.lax.conv_general_dilated(values, weights[place], (1, 1), padding)
        values = jax.nn.relu(values + weights[place + 1][:, None, None])
        values = jax.lax.reduce_window(values, -np.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return _jax_dense(jax, weights[4:], values.reshape(-1))


def _sparse(x: Tensor) -> Any:
    """(N, 2**20) rows with a 1 in each slot of ``x``."""
    from scipy.sparse import csr_matrix

    num, width = x.shape
    ones = np.ones(num * width, np.float32)
    return csr_matrix((ones, x.reshape(-1).numpy(), np.arange(0, num * width + 1, width)), shape=(num, 2**20))


def sklearn_linear(task: Task, x: Tensor, y: Tensor, *, size: int) -> Side:
    """`SGDClassifier.partial_fit`, one class against the rest; over many records, it keeps its predictions to itself.

    Record by record (``size`` 1) it is asked for its prediction first.
    """
    from sklearn.linear_model import SGDClassifier

    _one_blas_thread()
    model = SGDClassifier("log_loss", penalty=None, learning_rate="constant", eta0=0.01, shuffle=False)
    inputs = x.numpy() if task.widths else _sparse(x)
    labels = y.numpy().astype(np.int64)
    model.partial_fit(inputs[:1], labels[:1], classes=np.unique(labels))
    portion = 64 if size == 1 else size

    def run(first: int) -> None:
        for place in range(first, first + portion, size):
            piece = inputs[place : place + size]
            if size == 1:
                model.predict_proba(piece)
            model.partial_fit(piece, labels[place : place + size])

    return Side(portion, len(y), run)


def sklearn_mlp(task: Task, x: Tensor, y: Tensor) -> Side:
    """`MLPClassifier.partial_fit` with batches of one record."""
    from sklearn.neural_network import MLPClassifier

    _one_blas_thread()
    settings = OPTIMIZERS[task.optimizer].keywords
    model = MLPClassifier(
        task.widths[1:-1],
        solver="adam" if task.optimizer == "Adam" else "sgd",
        alpha=settings.get("weight_decay", 0.0),
        batch_size=1,
        learning_rate_init=settings["lr"],
        momentum=settings.get("momentum", 0.0),
        nesterovs_momentum=False,
        shuffle=False,
    )
    inputs, labels = x.numpy(), y.numpy()
    model.partial_fit(inputs[:1], labels[:1], classes=np.arange(task.widths[-1]))
    return Side(256, len(y), lambda first: model.partial_fit(inputs[first : first + 256], labels[first : first + 256]))


def _one_blas_thread() -> None:
    import threadpoolctl

    threadpoolctl.threadpool_limits(1, user_api="blas")


def _as_dicts(x: Tensor, num: int, *, whole: bool) -> list[dict[int, float]]:
    """The first ``num`` records as River takes them: what is not 0, or, if ``whole``, all."""
    if not x.is_floating_point():
        return [dict.fromkeys(row, 1.0) for row in x[:num].tolist()]
    return [{place: value for place, value in enumerate(row) if whole or value} for row in x[:num].tolist()]


def _record_by_record(model: Any, records: list[Any], labels: list[int], portion: int) -> Side:
    def run(first: int) -> None:
        for place in range(first, first + portion):
            model.predict_proba_one(records[place])
            model.learn_one(records[place], labels[place])

    return Side(portion, len(records), run)


def river(task: Task, x: Tensor, y: Tensor) -> Side:
    from river import linear_model, optim

    kind = linear_model.SoftmaxRegression if task.widths else linear_model.LogisticRegression
    num, portion = (512, 16) if task.widths else (8192, 512)
    labels = y[:num].int().tolist()
    return _record_by_record(kind(optim.SGD(0.01)), _as_dicts(x, num, whole=False), labels, portion)


def deep_river(task: Task, x: Tensor, y: Tensor) -> Side:
    """The same torch model in River's interface; an image is a dict of all its pixels, as it wants it."""
    import river.anomaly
    import river.base

    # deep-river 0.3 wants River 0.25, which is 300 times slower on hashed records, for a module that 0.26 moved.
    river.anomaly.base = sys.modules["river.anomaly.base"] = river.base
    from deep_river.classification import Classifier

    make = OPTIMIZERS[task.optimizer]
    model = Classifier(task.train()[0], "cross_entropy", make, lr=make.keywords["lr"])
    return _record_by_record(model, _as_dicts(x, 1024, whole=True), y[:1024].tolist(), 64)


def vowpal(task: Task, x: Tensor, y: Tensor) -> Side:
    """Vowpal Wabbit over its own cache: the text was parsed before. Ten classes are one against the rest."""
    import pylibvw
    from vowpalwabbit import Workspace

    x, y = (x[:4096], y[:4096]) if task.widths else (x, y)
    folder = tempfile.TemporaryDirectory(prefix="throughput-")
    text, cache = Path(folder.name, "records.txt"), Path(folder.name, "records.cache")
    with text.open("w") as file:
        if task.widths:
            for record, label in zip(_as_dicts(x, len(y), whole=False), y.tolist(), strict=True):
                file.write(f"{label + 1} | " + " ".join(f"{key}:{value:.6g}" for key, value in record.items()) + "\n")
        else:
            for record, label in zip(x.tolist(), y.tolist(), strict=True):
                file.write(f"{2 * int(label) - 1} | " + " ".join(map(str, record)) + "\n")
    reduction = f"--oaa {task.widths[-1]} -b 18" if task.widths else "-b 20"
    options = f"--quiet --no_stdin --sgd --holdout_off --power_t 0 -l 0.01 --loss_function logistic {reduction}"
    Workspace(f"{options} -d {text} --cache_file {cache}").finish()
    now: list[Any] = []

    def fresh() -> None:
        while now:
            now.pop().finish()
        now.append(Workspace(f"{options} --cache_file {cache}"))

    def run(_: int) -> None:
        assert folder  # it is removed with this function
        with _one_core():
            pylibvw.vw.run_parser(now[0])

    return Side(len(y), len(y), run, fresh)


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """For what reads in a thread of its own and cannot be told not to."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)
