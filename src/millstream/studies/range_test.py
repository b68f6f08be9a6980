"""A learning-rate range test: rates rise from far too small to far too large, and the loss says which one to take.

Several copies of the trainer's learner go through it, each on other records, so that what is suggested is not the luck
of one batch, and its noise is known. The trainer itself is only read. The method: Smith, "Cyclical learning rates for
training neural networks" (2017).

Shapes: R repeats, K rates.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from millstream import engines, sources
from millstream.contracts import Chunk, Source
from millstream.errors import DataError, SettingError
from millstream.learner import Learner
from millstream.studies.lockstep import twin
from millstream.trainer import Trainer

__all__ = ["RateRange", "Show", "choose_rate", "lr_range"]

Show = Callable[[str, int, int], None]
"""What is told on the way: a text, how many are done, of how many."""

NUM_RATES = 100
_LEAST_RECORDS = 4000  # of one repeat: fewer records an update need more updates
_LEAST_UPDATES = 300
_PRIMING_RECORDS = 1000  # that statistics of features begin with
_DIVERGED = 4.0  # times the loss at the beginning
_BANDWIDTH = NUM_RATES / 25  # of the smoothing, in rates
_FEW_HELD, _BELOW_LEAST = 10, 2.0  # with fewer updates a rate, the loss tells of it late: then half of it is taken
_BELOW_RISE = 3.0  # a rate that does no harm for a few updates may do so later
_BOOTSTRAPS = 400
_STANDARD_ERRORS = 3.0  # more than so many are no noise
_EQUAL = 0.01  # of the whole fall: a loss that is nearer to the least is as good
_LEAST_SHARE = 0.01  # of the loss at the beginning: less is no matter
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60

Losses = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class RateRange:
    """What a range test found. ``losses`` end where training diverged."""

    rates: list[float]  # (K,)
    losses: list[float]  # (K,) smoothed means over the repeats
    errors: list[float]  # (K,) their standard errors
    suggestion: float | None  # None: the losses do not tell
    interval: tuple[float, float] | None  # where 80 % of the suggestions from other draws of the repeats lie
    least: float | None  # the rate of the least loss
    diverged: float | None  # the first rate at which most repeats diverged
    reason: str  # for people: why this one, and whether it stands at an end of the interval
    optimizer: str
    update_size: int
    num_updates: int  # of one repeat
    num_repeats: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def ceiling(self) -> float:
        """A height over which the curve need not be drawn: what falls must not look flat beside what rises."""
        start, low, high = self.losses[0], min(self.losses), max(self.losses)
        return min(high, start + 1.5 * max(start - low, 0.1 * abs(start)))

    def __str__(self) -> str:
        lines = [f"loss by learning rate ({self.optimizer}, {self.update_size} a weight update)", *self._spark()]
        if self.suggestion is None:
            return "\n".join([*lines, f"no suggestion: {self.reason}"])
        around = "" if self.interval is None else f" ({self.interval[0]:.2g} to {self.interval[1]:.2g})"
        return "\n".join([*lines, f"suggested η = {self.suggestion:.2g}{around}: {self.reason}"])

    def _spark(self) -> list[str]:
        """The curve as one line of bars, the rates below it, the suggestion marked."""
        places = np.linspace(0, len(self.rates) - 1, min(_WIDTH, len(self.rates))).round().astype(int)
        losses = np.array(self.losses)[places]
        low, high = float(losses.min()), self.ceiling()
        heights = (np.minimum(losses, high) - low) / (high - low or 1.0) * (len(_BARS) - 1)
        bars = "".join(_BARS[round(height)] for height in heights.tolist())
        marks = [" "] * len(places)
        if self.suggestion is not None:
            marks[int(np.abs(np.log(np.array(self.rates)[places] / self.suggestion)).argmin())] = "▲"
        first, last = f"{self.rates[0]:.2g}", f"{self.rates[-1]:.2g}"
        axis = first + "".join(marks)[len(first) : len(marks) - len(last)].ljust(len(marks) - len(first) - len(last))
        return [f"  {bars}  {low:.3g} to {high:.3g}{' or more' if losses.max() > high else ''}", f"  {axis}{last}"]


def lr_range(
    trainer: Trainer,
    source: Any,
    *,
    update_size: int = 64,
    num_updates: int | None = None,
    num_repeats: int = 5,
    lowest: float = 1e-6,
    highest: float = 10.0,
    shuffle: bool = False,
    show: Show | None = None,
) -> RateRange:
    """Which learning rate suits the trainer as it stands, on these records; the trainer stays as it is.

    Each repeat learns ``num_updates`` updates of ``update_size`` records (without it 300 or more, of 4,000 records or
    more), at rates that rise geometrically from ``lowest`` to ``highest``. It begins again from the trainer's weights,
    with the records after those of the repeat before. The source is read again from its beginning when it ends; with
    ``shuffle``, in the order of an epoch. Groups of parameters keep the ratios of their rates; no schedule steps.
    Raises ``SettingError``, and what learning raises.

    >>> _ = torch.manual_seed(0)
    >>> model, x = torch.nn.Linear(3, 1), torch.randn(4000, 3)
    >>> trainer = Trainer(model, "mse", torch.optim.SGD(model.parameters(), lr=1.0))
    >>> found = lr_range(trainer, (x, x.sum(1, keepdim=True)), update_size=16)
    >>> 0.01 < found.suggestion < 1
    True
    """
    _check(update_size, num_updates, num_repeats, lowest, highest)
    started = time.perf_counter()
    num_updates = num_updates or max(_LEAST_UPDATES, -(-_LEAST_RECORDS // update_size))
    held = math.ceil(num_updates / NUM_RATES)  # updates at each rate
    rates = np.geomspace(lowest, highest, min(NUM_RATES, num_updates))
    source, _ = sources.training_sources(source, None, shuffle=shuffle, seed=trainer.seed)
    if shuffle:
        source = sources.Shuffled(source, seed=trainer.seed, epoch=0)
    with torch.random.fork_rng(devices=[]):
        chunks = _endless(source, update_size, held)
        first = _primed(trainer.learner, next(_endless(source, 1, _PRIMING_RECORDS)))
        curves = np.stack(
            [_curve(first, chunks, rates, update_size, show, (repeat, num_repeats)) for repeat in range(num_repeats)]
        )
    found = choose_rate(rates, curves, _BELOW_LEAST if held < _FEW_HELD else 1.0)
    name = type(trainer.learner.rule.optimizer).__name__
    return RateRange(
        **found,
        optimizer=name,
        update_size=update_size,
        num_updates=held * len(rates),
        num_repeats=num_repeats,
        seconds=time.perf_counter() - started,
    )


def choose_rate(rates: Losses, curves: Losses, below: float = 1.0) -> dict[str, Any]:
    """The fields of a ``RateRange`` that follow from the (R, K) losses of the repeats; NaN from where one diverged.

    The suggestion is the rate of least loss over ``below``, where the loss still falls: the median over draws of the
    repeats with replacement. Where the loss does not fall by more than its noise (weights that are trained already) it
    is a third of the largest rate at which it has not risen.
    """
    num_alive = (~np.isnan(curves)).sum(0)
    end = int((num_alive * 2 > len(curves)).sum())  # most repeats go on until here
    found: dict[str, Any] = {"suggestion": None, "interval": None, "least": None}
    found["diverged"] = float(rates[end]) if end < len(rates) else None
    if end < 3:
        found["reason"] = "training diverged at the lowest rates; test lower ones"
        return found | {"rates": rates[:1].tolist(), "losses": [0.0], "errors": [0.0]}
    smooth = _smoothed(_carried(curves[:, :end]))
    errors = (smooth.std(0, ddof=1) / math.sqrt(len(curves))).tolist()
    found |= {"rates": rates[:end].tolist(), "losses": smooth.mean(0).tolist(), "errors": errors}
    kind = _kind(smooth)
    if kind == "flat":
        found["reason"] = "the loss neither falls nor rises by more than its noise; test more updates, or other rates"
        return found
    draws = np.random.default_rng(0).integers(len(curves), size=(_BOOTSTRAPS, len(curves)))
    below = below if kind == "falls" else _BELOW_RISE
    logs = np.log([rates[_place(smooth[draw], kind)] for draw in draws]) - math.log(below)
    low, middle, high = np.exp(np.quantile(logs, (0.1, 0.5, 0.9))).clip(rates[0], rates[-1]).tolist()
    found |= {"suggestion": middle, "interval": (low, high), "least": float(rates[_place(smooth, kind)])}
    return found | {"reason": _reason(kind, middle, rates, end, below)}


def _check(update_size: int, num_updates: int | None, num_repeats: int, lowest: float, highest: float) -> None:
    for name, value, least in (("update_size", update_size, 1), ("num_repeats", num_repeats, 2)):
        if value < least:
            raise SettingError(got=f"{name}={value}", wanted=f"{least} or more", do="leave it out")
    if num_updates is not None and num_updates < 10:
        raise SettingError(got=f"num_updates={num_updates}", wanted="10 or more", do="leave it out")
    if not 0 < lowest < highest < math.inf:
        raise SettingError(
            got=f"rates from {lowest:g} to {highest:g}", wanted="a rising range above 0", do="leave it out"
        )


# ---------------------------------------------------------------- learning at rising rates


def _endless(source: Source, update_size: int, held: int) -> Iterator[Chunk]:
    """Chunks of ``held`` whole updates, from the beginning again when the source ends."""
    size, found = held * update_size, True
    while found:
        found = False
        for chunk in source.read(size=size):
            if len(chunk) and (chunk.span == size or not found):
                found = True
                yield chunk
    raise DataError(got="no records to test rates with", wanted="at least one", do="check the name of the data")


def _copied(learner: Learner) -> Learner:
    """A learner that shares nothing with this one, without its schedule."""
    rule = dataclasses.replace(learner.rule, scheduler=None)
    rule = twin(rule, engines.parameter_of(rule.model).dtype)
    name = learner.engine.name
    engine = engines.choose(name if name in engines.NAMES else "auto", rule)
    return Learner(rule, engine, copy.deepcopy(learner.features))


def _primed(learner: Learner, chunk: Chunk) -> Learner:
    """A copy whose features have statistics to begin with, and whose model fits the records."""
    first = _copied(learner)
    chunk = first.prepare(chunk, learn=True)
    if not len(chunk):
        raise DataError(got="records that were all refused", wanted="some to learn", do="correct the data")
    first.check(chunk)
    if first.features is not None and first.features.scales_targets and chunk.targets is not None:
        first.features.scale_targets(chunk.targets.cpu(), learn=True)
    return first


def _curve(
    first: Learner, chunks: Iterator[Chunk], rates: Losses, update_size: int, show: Show | None, turn: tuple[int, int]
) -> Losses:
    """(K,) the loss of the records that were learned at each rate, before they were; NaN once it diverged."""
    learner = _copied(first)
    learner.shape = first.shape
    groups = learner.rule.optimizer.param_groups
    ratios = [float(group["lr"]) / (float(groups[0]["lr"]) or 1.0) or 1.0 for group in groups]
    losses: Losses = np.full(len(rates), np.nan)
    position, most = 0, math.inf
    for place, rate in enumerate(rates.tolist()):
        for group, ratio in zip(groups, ratios, strict=True):
            group["lr"] = rate * ratio
        chunk = learner.prepare(next(chunks), learn=True)
        if not len(chunk):
            losses[place] = losses[place - 1] if place else 0.0
            continue
        scored = learner.learn(chunk, update_size, position, None, frozen=False)
        position += chunk.span
        values = scored.losses.double().cpu().numpy()
        if scored.skipped or not np.isfinite(values).all():
            break
        losses[place] = values.mean()
        if place == len(rates) // 10:
            most = _DIVERGED * float(np.median(losses[: place + 1])) + 4 * float(losses[: place + 1].std())
        if losses[place] > most and losses[place - 1] > most:
            losses[place] = np.nan
            break
        if show is not None:
            show(f"η {rate:.2g}, loss {losses[place]:.3g}", turn[0] * len(rates) + place + 1, turn[1] * len(rates))
    return losses


# ---------------------------------------------------------------- what the losses say


def _carried(curves: Losses) -> Losses:
    """Curves in which those that diverged keep their last value."""
    curves = curves.copy()
    for curve in curves:
        alive = np.flatnonzero(~np.isnan(curve))
        curve[alive[-1] + 1 if len(alive) else 0 :] = curve[alive[-1]] if len(alive) else np.nanmax(curves)
    return curves


def _smoothed(curves: Losses) -> Losses:
    """Each curve by a Gaussian kernel over its rates, whose weights are shared out anew at the ends."""
    num = curves.shape[1]
    width = _BANDWIDTH * min(1.0, num / NUM_RATES * 2)
    distances = np.subtract.outer(np.arange(num), np.arange(num)) / width
    kernel = np.exp(-0.5 * distances**2)
    smooth: Losses = curves @ (kernel / kernel.sum(0))
    return smooth


def _is_more_than_noise(differences: Losses, scale: float) -> bool:
    """Whether the mean of R differences is above 0 by many standard errors, and by a share of the loss that matters."""
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return mean > _STANDARD_ERRORS * error and mean > _LEAST_SHARE * abs(scale)


def _kind(smooth: Losses) -> str:
    """Whether the losses fall by more than their noise, only rise, or neither.

    The least of many noisy losses is low by luck. So each repeat is asked where all the others are least.
    """
    start = smooth[:, : max(1, smooth.shape[1] // 10)].mean(1)
    falls = np.zeros(len(smooth))
    for place in range(len(smooth)):
        least = int(np.delete(smooth, place, axis=0).mean(0).argmin())
        falls[place] = start[place] - smooth[place, least]
    scale = float(start.mean())
    if _is_more_than_noise(falls, scale):
        return "falls"
    return "rises" if _is_more_than_noise(smooth[:, -1] - start, scale) else "flat"


def _place(smooth: Losses, kind: str) -> int:
    """The place of the rate of least loss; where the losses only rise, of the last one that is not above the noise.

    Of rates that are equally good it is the first: where nothing is left to learn, rates that diverge rise late.
    """
    mean = smooth.mean(0)
    start = smooth[:, : max(1, smooth.shape[1] // 10)]
    if kind == "falls":
        least = float(mean.min())
        return int(np.argmax(mean <= least + _EQUAL * max(0.0, float(start.mean()) - least)))
    noise = max(float(start.mean(1).std()) * _STANDARD_ERRORS / math.sqrt(len(smooth)), _LEAST_SHARE * start.mean())
    calm = np.flatnonzero(mean <= start.mean() + noise)
    return int(calm[-1]) if len(calm) else 0


def _reason(kind: str, middle: float, rates: Losses, end: int, below: float) -> str:
    if middle <= rates[0] * 1.001:
        return "the lowest rate that was tested; test lower ones too"
    if kind == "rises":
        return f"a third of the largest rate that does not raise the loss ({middle * below:.2g})"
    reason = "the rate of least loss" if below == 1 else f"half the rate of least loss ({middle * below:.2g})"
    if end == len(rates) and middle * below >= rates[-5]:
        return f"{reason}, which is the highest that was tested; test higher ones too"
    return reason
