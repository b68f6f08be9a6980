"""A race of learning rates: copies of one model learn the same records side by side, and the best one answers.

Nobody knows the right rate beforehand, and it moves as the data drifts. Each copy is scored by what it predicted before
it learned; for every record the copy answers that did best on those before it. Copies that have no chance are stopped,
so that steady data costs little more than one copy, and run again now and then, or when the world has changed, from
where the leader is. The model that people hold shows the weights of the leader.

Shapes: K copies, N records, M questions.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from millstream.contracts import Chunk, Engine, Event, Inputs, Loss, Outcome, Questions, State
from millstream.engines.candidates import Candidate, MakesOptimizer, candidates_of
from millstream.engines.choice import choose
from millstream.engines.copies import Copy, copied, tensors_of
from millstream.engines.reference import ReferenceEngine
from millstream.engines.rule import UpdateRule
from millstream.engines.several import Several, options_of
from millstream.engines.standings import Standings
from millstream.errors import CheckpointError, LearningError, MillstreamError, SettingError

__all__ = ["RaceEngine", "prepare"]

SEGMENT = 512  # records between two looks at who may be stopped
_SHARE_OF_LOSS = 0.1  # of the score of a class; the rest is whether it was right
_MOST_LOSS, _MOST_MEANS = 5.0, 20.0  # more than these counts no more: nats of a class, times the mean of a number
_MOST_AT_FIRST = 1e12  # before that mean is known
_MOST_BYTES = 1 << 30  # of the weights of all copies


def prepare(
    engine: str,
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer | Sequence[Candidate | MakesOptimizer] | None,
    **settings: Any,
) -> Engine:
    """The engine of one optimizer, by its name, or of those that race. ``settings`` are of the ``UpdateRule``."""
    racing = candidates_of(optimizer)
    one = optimizer if isinstance(optimizer, torch.optim.Optimizer) else racing[0].make(model.parameters())
    rule = UpdateRule(model, loss, one, **settings)
    return RaceEngine(rule, racing, engine) if racing else choose(engine, rule)


class RaceEngine:
    """Several rates for one model. ``rule.optimizer`` is never stepped: each copy has its own.

    ``candidates`` are the optimizers that run, the first of which leads until there is something to go by.
    """

    def __init__(self, rule: UpdateRule, candidates: Sequence[Candidate], engine: str = "auto") -> None:
        if rule.scheduler is not None:
            raise SettingError(
                got="a scheduler beside several optimizers", wanted="one of the two", do="give one optimizer"
            )
        self.rule = rule
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(rule.model))
        fitting = candidates[: max(1, _MOST_BYTES // max(1, size))]
        self._options = options_of(rule.model)
        self._copies = [copied(rule, option, each, engine) for each in fitting for option in self._options.items()]
        self._began = [each.name for each in self._copies]
        self.standings = Standings(len(self._copies))
        self._answering = ReferenceEngine(rule)
        self._in_segment = 0  # records of the segment so far
        self._asked = np.zeros((len(self._copies), 0))  # scores of questions whose lessons have not come
        self._asked_numbers = np.zeros(0, np.int64)
        self._scale = 0.0  # of losses that are not of classes: the leader's mean
        self._shown = -1
        self._told = 0  # the leader that was told of last
        self._events: list[Event] = []
        self._show()

    @property
    def name(self) -> str:
        """That of the engine that computes the copies' updates."""
        return self._copies[0].engine.name

    @property
    def optimizer(self) -> str:
        """The name of the candidate that answers now."""
        return self._leading.name

    @property
    def learning_rate(self) -> float:
        return float(self._leading.rule.optimizer.param_groups[0]["lr"])

    @property
    def _leading(self) -> Copy:
        return self._copies[self.standings.leader]

    def chunk_size(self, update_size: int) -> int:
        return self._copies[0].engine.chunk_size(update_size)

    def predict(self, inputs: Inputs) -> Tensor:
        return self._answering.predict(inputs)

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        for each in self._copies:
            each.rule.scoring = self.rule.scoring
        answers: list[tuple[Tensor, Tensor]] = []
        skipped: list[int] = []
        num_updates, asked, by_reference = 0, 0, ""
        for first, last in self._pieces(chunk, update_size):
            if self._in_segment >= SEGMENT:
                if questions is not None:  # of before the segment's end, which come first whatever the cuts
                    due = int(np.searchsorted(questions.learned_before, first, side="right"))
                    asked = self._ask(questions, asked, due, first, chunk, answers)
                self._end_segment(chunk.start + first)
            piece = chunk.select(slice(first, last))
            self._in_segment += last - first
            try:
                if questions is None:
                    outcome = self._learn(piece, update_size, answers)
                else:
                    due = int(np.searchsorted(questions.learned_before, last, side="right"))
                    outcome = self._learn_and_answer(piece, update_size, _part(questions, asked, due, first), answers)
                    asked = due
            except MillstreamError as error:
                learned = max(first, getattr(error, "num_learned", 0))  # a piece knows its places in the chunk
                if not learned:
                    raise
                do = f"{error.do.rpartition('; ')[0] or error.do}; the first {learned} records were learned"
                raise LearningError(got=error.got, wanted=error.wanted, do=do, num_learned=learned) from error
            num_updates += outcome.num_updates
            skipped += [first + place for place in outcome.skipped]
            by_reference = by_reference or outcome.by_reference
        if questions is not None:
            self._ask(questions, asked, len(questions.chunk), len(chunk), chunk, answers)
        self._show()
        outputs, losses = (torch.cat(parts) for parts in zip(*answers, strict=True))
        events, self._events = tuple(self._events), []
        return Outcome(outputs, losses, num_updates, tuple(skipped), events, by_reference)

    def world_changed(self, position: int, reason: str) -> None:
        """All copies run on from where the leader is, and what was known of them counts less."""
        self._reopen(position, reason, changed=True)

    def state_dict(self) -> State:
        return {
            "names": self._began,
            "rates": [each.rate for each in self._copies],
            "copies": [
                {"model": dict(each.rule.model.state_dict()), "optimizer": each.rule.optimizer.state_dict()}
                for each in self._copies
            ],
            "standings": self.standings.state_dict(),
            "in_segment": self._in_segment,
            "asked": self._asked,
            "asked_numbers": self._asked_numbers,
            "scale": self._scale,
            "told": self._told,
            "events": [dataclasses.asdict(event) for event in self._events],
        }

    def load_state_dict(self, state: State) -> None:
        if state["names"] != self._began:
            raise CheckpointError(
                got=f"a race of {', '.join(state['names'])}",
                wanted=", ".join(self._began),
                do="build the trainer with the optimizers that it was made with",
            )
        for each, saved, rate in zip(self._copies, state["copies"], state["rates"], strict=True):
            each.rate = rate
            each.rule.model.load_state_dict(saved["model"])
            each.rule.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        self.standings.load_state_dict(state["standings"])
        self._in_segment, self._scale, self._told = state["in_segment"], state["scale"], state["told"]
        self._asked, self._asked_numbers = np.array(state["asked"]), np.array(state["asked_numbers"])
        self._show()

    # ---------------------------------------------------------------- one piece of a chunk

    def _pieces(self, chunk: Chunk, update_size: int) -> Iterator[tuple[int, int]]:
        """(first, last + 1) records of whole updates, as many as the segment still has room for."""
        edges = [] if update_size == 1 else [last for _, last in chunk.updates(update_size)]
        first = 0
        while first < len(chunk):
            last = min(first + SEGMENT - self._in_segment % SEGMENT, len(chunk))
            if edges:
                last = edges[bisect.bisect_left(edges, last)]
            yield first, last
            first = last

    def _running(self) -> list[int]:
        return np.flatnonzero(self.standings.running).tolist()

    def _learn(self, piece: Chunk, update_size: int, answers: list[tuple[Tensor, Tensor]]) -> Outcome:
        outcomes = {number: self._copies[number].engine.learn(piece, update_size) for number in self._running()}
        assert piece.targets is not None
        leaders = self.standings.see(self._scores(outcomes, piece.targets))
        if update_size == 1:
            answering = leaders[:-1]
        else:  # all records of an update are predicted before any of them is scored
            answering = leaders[[first for first, last in piece.updates(update_size) for _ in range(last - first)]]
        answers.append(_picked(outcomes, answering))
        return outcomes.get(self.standings.leader) or next(iter(outcomes.values()))

    def _learn_and_answer(
        self, piece: Chunk, update_size: int, questions: Questions, answers: list[tuple[Tensor, Tensor]]
    ) -> Outcome:
        asked = questions if len(questions.chunk) else None
        outcomes = {n: self._copies[n].engine.learn(piece, update_size, asked) for n in self._running()}
        if asked is not None:
            self._keep(asked.chunk, outcomes)
        leaders = self.standings.see(self._known(piece))
        if asked is not None:
            answers.append(_picked(outcomes, leaders[asked.learned_before]))
        return outcomes.get(self.standings.leader) or next(iter(outcomes.values()))

    def _ask(
        self,
        questions: Questions,
        first: int,
        last: int,
        learned: int,
        chunk: Chunk,
        answers: list[tuple[Tensor, Tensor]],
    ) -> int:
        """Questions that no lesson stands between."""
        if last > first:
            rest = questions.chunk.select(slice(first, last))
            assert rest.targets is not None
            outcomes = {}
            for number in self._running():
                each = self._copies[number]
                outputs = each.engine.predict(rest.inputs)
                outcomes[number] = Outcome(outputs, self.rule.loss(outputs, rest.targets))
            self._keep(rest, outcomes)
            answers.append(_picked(outcomes, np.full(last - first, self.standings.leader)))
        return last

    def _keep(self, asked: Chunk, outcomes: dict[int, Outcome]) -> None:
        """The scores of questions, until their lessons come."""
        assert asked.numbers is not None and asked.targets is not None
        if not len(self._asked_numbers) or asked.numbers[0] <= self._asked_numbers[-1]:  # another phase has begun
            self._asked, self._asked_numbers = self._asked[:, :0], self._asked_numbers[:0]
        self._asked = np.concatenate([self._asked, self._scores(outcomes, asked.targets)], axis=1)
        self._asked_numbers = np.concatenate([self._asked_numbers, asked.numbers])

    def _known(self, lessons: Chunk) -> npt.NDArray[np.float64]:
        """(K, N) what was scored when these lessons were asked."""
        assert lessons.numbers is not None
        places = np.searchsorted(self._asked_numbers, lessons.numbers)
        found = self._asked[:, places]
        kept = np.ones(len(self._asked_numbers), bool)
        kept[places] = False
        self._asked, self._asked_numbers = self._asked[:, kept], self._asked_numbers[kept]
        # A copy that did not run then counts as the leader does, which it went on from.
        return np.where(np.isnan(found), found[self.standings.leader], found)

    def _scores(self, outcomes: dict[int, Outcome], targets: Tensor) -> npt.NDArray[np.float64]:
        """(K, N) how bad each answer was; NaN for copies that do not run."""
        scores = np.full((len(self._copies), len(targets)), np.nan)
        losses = {n: outcome.losses.double().cpu().numpy() for n, outcome in outcomes.items()}
        task = self.rule.loss.task
        if task not in ("classes", "binary"):
            most = _MOST_MEANS * self._scale if self._scale else _MOST_AT_FIRST
            for number, value in losses.items():
                scores[number] = np.minimum(np.nan_to_num(value, nan=most, posinf=most), most)
            return scores
        for number, value in losses.items():
            wrong = _wrong(outcomes[number].outputs, targets, task)
            capped = np.minimum(np.nan_to_num(value, nan=_MOST_LOSS, posinf=_MOST_LOSS), _MOST_LOSS)
            scores[number] = wrong + _SHARE_OF_LOSS * capped
        return scores

    # ---------------------------------------------------------------- between two segments

    def _end_segment(self, position: int) -> None:
        self._in_segment = 0
        is_lost = self.standings.is_lost()
        stopped = self.standings.close()
        self._scale = self.standings.mean_of_leader()
        for number in stopped:
            self._tell(position, "stopped", self._copies[number].name)
        if self.standings.leader != self._told:
            self._told = self.standings.leader
            self._tell(position, "leads", self.optimizer)
        if is_lost:
            self._reopen(position, "the score of the leader has doubled", changed=True)
        elif self.standings.is_time_to_reopen():
            self._reopen(position, "it was time", changed=False)

    def _reopen(self, position: int, reason: str, *, changed: bool) -> None:
        """Those that were stopped go on from where the leader is. If it may be lost, slower ones keep what they had."""
        leading = self._leading
        reopened = [self._copies[number] for number in self.standings.reopen(changed=changed)]
        self._widen(reopened)
        for each in reopened:
            if not (changed and each.is_like(leading) and each.rate < leading.rate):
                each.take(leading)
        self._tell(position, "all run again", reason)

    def _widen(self, reopened: list[Copy]) -> None:
        """If the leader has the lowest or highest rate of its kind, the one at the other end goes beyond it."""
        leading = self._leading
        kind = sorted((each for each in self._copies if each.is_like(leading)), key=lambda each: each.rate)
        if len(kind) < 3 or leading not in (kind[0], kind[-1]):
            return
        is_lowest = leading is kind[0]
        farthest = kind[-1] if is_lowest else kind[0]
        if any(farthest is each for each in reopened):
            farthest.go_to(leading.rate / 3 if is_lowest else leading.rate * 3)

    def _tell(self, position: int, what: str, detail: str) -> None:
        self._events.append(Event(position, what, detail, self.learning_rate))

    def _show(self) -> None:
        """The person's model becomes the leader's weights: the same memory, not a copy."""
        if self._shown != self.standings.leader:
            self._shown = self.standings.leader
            leading = self._leading
            for shown, its in zip(
                tensors_of(self._options[leading.model]), tensors_of(leading.rule.model), strict=True
            ):
                shown.data = its.data
            if isinstance(self.rule.model, Several):
                self.rule.model.choose(leading.model)


def _part(questions: Questions, first: int, last: int, learned: int) -> Questions:
    """Questions ``first`` to ``last``, for a piece that begins after so many lessons."""
    before = np.maximum(questions.learned_before[first:last] - learned, 0)
    return Questions(questions.chunk.select(slice(first, last)), before)


def _picked(outcomes: dict[int, Outcome], leaders: npt.NDArray[np.intp]) -> tuple[Tensor, Tensor]:
    """The outputs and losses of those that led."""
    chosen = np.unique(leaders).tolist()
    if len(chosen) == 1:
        only = outcomes[chosen[0]]
        return only.outputs, only.losses
    first = outcomes[chosen[0]]
    outputs, losses = first.outputs.clone(), first.losses.clone()
    for number in chosen[1:]:
        mask = torch.from_numpy(leaders == number).to(outputs.device)
        outputs[mask], losses[mask] = outcomes[number].outputs[mask], outcomes[number].losses[mask]
    return outputs, losses


def _wrong(outputs: Tensor, targets: Tensor, task: str) -> npt.NDArray[np.float64]:
    if task == "binary":
        right = (outputs.reshape(len(targets)) > 0) == (targets.reshape(len(targets)) > 0.5)
    else:
        wanted = targets if not targets.is_floating_point() else targets.argmax(-1)
        right = outputs.argmax(1) == wanted
        right = right.flatten(1).all(1) if right.ndim > 1 else right
    wrong: npt.NDArray[np.float64] = (~right).double().cpu().numpy()
    return wrong
