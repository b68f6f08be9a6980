"""A race of learning rates: copies of one model learn the same records side by side, and the best one answers.

Nobody knows the right rate beforehand, and it moves as the data drifts. Each copy is scored by what it predicted before
it learned; for every record the copy answers that did best on those before it. Copies that have no chance are stopped,
so that steady data costs little more than one copy, and run again now and then, or when the world has changed, from
where the leader is. The model that people hold shows the weights of the leader.

Shapes: K copies, N records, M questions.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import Chunk, Event, GradientNorms, Inputs, Outcome, Questions, State
from millstream.engines.candidates import Racing, entrants_of
from millstream.engines.copies import Copy, copied, tensors_of
from millstream.engines.heats import Heats
from millstream.engines.pieces import part_of, pieces, raise_so_far
from millstream.engines.reference import ReferenceEngine
from millstream.engines.rule import UpdateRule
from millstream.engines.scores import Scores
from millstream.engines.several import Several, options_of
from millstream.engines.standings import Board, Standings
from millstream.errors import CheckpointError, MillstreamError, SettingError

__all__ = ["RaceEngine"]

SEGMENT = 512  # records between two looks at who may be stopped
_MOST_BYTES = 1 << 30  # of the weights of all copies


class RaceEngine:
    """Several rates for one model. ``rule.optimizer`` is never stepped: each copy has its own.

    ``candidates`` are the optimizers that run, the first of which leads until there is something to go by. Online they
    run again now and then; a ``fit`` is a race of its own, which ends for good (``heats``).
    """

    def __init__(self, rule: UpdateRule, candidates: Racing, engine: str = "auto") -> None:
        if rule.scheduler is not None:
            raise SettingError(
                got="a scheduler beside several optimizers", wanted="one of the two", do="give one optimizer"
            )
        self.rule = rule
        self._entrants, self._engine = entrants_of(candidates), engine
        self._options = options_of(rule.model)
        self._answering = ReferenceEngine(rule)
        self._events: list[Event] = []
        self._line_up("learn")

    def _line_up(self, kind: Literal["fit", "learn"]) -> None:
        """New copies of what is shown, for the optimizers of a kind of training."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(self.rule.model))
        self._kind, fitting = kind, self._entrants.of(kind)[: max(1, _MOST_BYTES // max(1, size))]
        options = self._options.items()
        self._copies = [copied(self.rule, option, each, self._engine) for each in fitting for option in options]
        num = len(self._copies)
        if kind == "learn" and len(fitting) > 1 and size * (num + 2 * len(options)) <= _MOST_BYTES:
            self._copies += [copied(self.rule, option, fitting[0], self._engine) for option in options]
        self._num_spare = len(self._copies) - num
        self._first = {name: copy.deepcopy(model) for name, model in options} if self._num_spare else {}
        self._began = [each.name for each in self._copies]
        self.standings: Board = Heats(num) if kind == "fit" else Standings(len(self._copies), self._num_spare)
        self._in_segment = 0  # records of the segment so far
        self._scores = Scores(len(self._copies), self.rule.loss)
        self._shown = -1
        self._told = 0  # the leader that was told of last
        self._show()

    def begin(self, kind: Literal["fit", "learn"]) -> None:
        """A phase begins: a ``fit`` is a new race from the weights that are shown; ``learn`` goes on where it was."""
        if kind != self._kind or kind == "fit":
            self._line_up(kind)

    def end_epoch(self, position: int) -> tuple[Event, ...]:
        """The race of a fit ends with its first epoch: later scores would be of records seen before."""
        if self._kind == "fit":
            self._stop(position, self.standings.finish())
            self._show()
        events, self._events = tuple(self._events), []
        return events

    @property
    def name(self) -> str:
        """That of the engine that computes the copies' updates."""
        return self._copies[0].engine.name

    @property
    def optimizer(self) -> str:
        """The name of the candidate that answers now."""
        return self._leading.name

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Of all copies."""
        return [each.rule.optimizer for each in self._copies]

    @property
    def learning_rate(self) -> float:
        return float(self.active.optimizer.param_groups[0]["lr"])

    @property
    def active(self) -> UpdateRule:
        return self._leading.rule

    @property
    def is_settled(self) -> bool:
        return self.standings.is_over

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
        norms: list[GradientNorms] = []
        num_updates, asked, by_reference = 0, 0, ""
        for first, last in self._pieces(chunk, update_size):
            if self._in_segment >= SEGMENT:
                if questions is not None:  # of before the segment's end, which come first whatever the cuts
                    due = int(np.searchsorted(questions.learned_before, first, side="right"))
                    asked = self._ask(questions, asked, due, answers)
                self._end_segment(int(chunk.positions()[first]))
            piece = chunk.select(slice(first, last))
            self._in_segment += last - first
            try:
                if questions is None:
                    outcome = self._learn(piece, update_size, answers)
                else:
                    due = int(np.searchsorted(questions.learned_before, last, side="right"))
                    outcome = self._learn_and_answer(piece, update_size, part_of(questions, asked, due, first), answers)
                    asked = due
            except MillstreamError as error:
                raise_so_far(error, int(chunk.positions()[first]) - chunk.start)
            num_updates += outcome.num_updates
            skipped += [first + place for place in outcome.skipped]
            norms += outcome.norms
            by_reference = by_reference or outcome.by_reference
        if questions is not None:
            self._ask(questions, asked, len(questions.chunk), answers)
        self._show()
        nothing = [(torch.empty(0), torch.empty(0))]  # no question stands among these lessons
        outputs, losses = (torch.cat(parts) for parts in zip(*(answers or nothing), strict=True))
        events, self._events = tuple(self._events), []
        return Outcome(outputs, losses, num_updates, tuple(skipped), events, by_reference, tuple(norms))

    def world_changed(self, position: int, reason: str) -> None:
        """All copies run on from where the leader is, and what was known of them counts less."""
        self._reopen(position, reason, changed=True)

    def state_dict(self) -> State:
        return {
            "kind": self._kind,
            "names": self._began,
            "rates": [each.rate for each in self._copies],
            "copies": [
                each.state_dict() if runs or self._kind == "learn" else None  # in a fit, nothing stopped runs again
                for each, runs in zip(self._copies, self.standings.running, strict=True)
            ],
            "first": {name: dict(model.state_dict()) for name, model in self._first.items()},
            "standings": self.standings.state_dict(),
            "in_segment": self._in_segment,
            **self._scores.state_dict(),
            "told": self._told,
            "events": [dataclasses.asdict(event) for event in self._events],
        }

    def load_state_dict(self, state: State) -> None:
        if state.get("kind", self._kind) != self._kind:
            self._line_up(state["kind"])
        if state.get("names") != self._began:
            raise CheckpointError(
                got=f"a race of {', '.join(state['names'])}" if "names" in state else f"a run with {state['wrapper']}",
                wanted=", ".join(self._began),
                do="build the trainer with the optimizers that it was made with",
            )
        for each, saved, rate in zip(self._copies, state["copies"], state["rates"], strict=True):
            each.rate = rate
            if saved is not None:
                each.load_state_dict(saved)
        for name, model in self._first.items():
            model.load_state_dict(state["first"][name])
        self.standings.load_state_dict(state["standings"])
        self._in_segment, self._told = state["in_segment"], state["told"]
        self._scores.load_state_dict(state)
        self._events = [Event(**event) for event in state["events"]]
        self._show()

    # ---------------------------------------------------------------- one piece of a chunk

    def _pieces(self, chunk: Chunk, update_size: int) -> Iterator[tuple[int, int]]:
        """(first, last + 1) records of whole updates, as many as the segment still has room for."""
        if self.is_settled:
            return iter([(0, len(chunk))] if len(chunk) else [])
        return pieces(chunk, update_size, SEGMENT, self._in_segment % SEGMENT)

    def _running(self) -> list[int]:
        return np.flatnonzero(self.standings.running).tolist()

    def _learn(self, piece: Chunk, update_size: int, answers: list[tuple[Tensor, Tensor]]) -> Outcome:
        outcomes = {number: self._copies[number].engine.learn(piece, update_size) for number in self._running()}
        assert piece.targets is not None
        is_new, before = _new(piece)
        scores = self._scores.of(outcomes, piece.targets)
        leaders = self.standings.see(scores if is_new.all() else scores[:, is_new])
        if update_size == 1:
            answering = leaders[before[:-1]]
        else:  # all records of an update are predicted before any of them is scored
            firsts = [first for first, last in piece.updates(update_size) for _ in range(last - first)]
            answering = leaders[before[firsts]]
        answers.append(_picked(outcomes, answering))
        return outcomes.get(self.standings.leader) or next(iter(outcomes.values()))

    def _learn_and_answer(
        self, piece: Chunk, update_size: int, questions: Questions, answers: list[tuple[Tensor, Tensor]]
    ) -> Outcome:
        assert piece.numbers is not None
        asked = questions if len(questions.chunk) else None
        outcomes = {n: self._copies[n].engine.learn(piece, update_size, asked) for n in self._running()}
        self._scores.count(piece, asked)
        if asked is not None:
            self._scores.keep(asked, outcomes)
        is_new, before = _new(piece)
        lessons = piece if is_new.all() else piece.select(np.flatnonzero(is_new))
        usual = self.standings.mean_of_leader()
        leaders = self.standings.see(self._scores.known(lessons, self.standings.leader, usual))
        if asked is not None:
            answers.append(_picked(outcomes, leaders[before[asked.learned_before]]))
        return outcomes.get(self.standings.leader) or next(iter(outcomes.values()))

    def _ask(self, questions: Questions, first: int, last: int, answers: list[tuple[Tensor, Tensor]]) -> int:
        """Questions that no lesson stands between."""
        if last > first:
            part = part_of(questions, first, last, 0)
            rest, outcomes = part.chunk, {}
            assert rest.targets is not None
            for number in self._running():
                each = self._copies[number]
                outputs = each.engine.predict(rest.inputs)
                outcomes[number] = Outcome(outputs, self.rule.loss(outputs, rest.targets))
            self._scores.keep(part, outcomes)
            answers.append(_picked(outcomes, np.full(last - first, self.standings.leader)))
        return last

    # ---------------------------------------------------------------- between two segments

    def _end_segment(self, position: int) -> None:
        self._in_segment = 0
        is_lost = self.standings.is_lost()
        self._stop(position, self.standings.close())
        are_late = self._scores.are_late
        self._scores.close(self.standings.mean_of_leader())
        if is_lost:
            self._reopen(position, "the score of the leader has doubled", changed=True)
        elif self.standings.has_changed() and not are_late:  # else copies run for long before they are judged
            self._reopen(position, "the score of the leader has risen", changed=True)
        elif self.standings.is_time_to_reopen():
            self._reopen(position, "it was time", changed=False)

    def _stop(self, position: int, stopped: Sequence[int]) -> None:
        for number in stopped:
            self._tell(position, "stopped", self._copies[number].name)
        if self.standings.leader != self._told:
            self._told = self.standings.leader
            self._tell(position, "leads", self.optimizer)

    def _reopen(self, position: int, reason: str, *, changed: bool) -> None:
        """Those that were stopped go on from where the leader is. If it may be lost, slower ones keep what they had."""
        leading = self._leading
        reopened = [self._copies[number] for number in self.standings.reopen(changed=changed)]
        self._widen(reopened)
        for each in reopened:
            if not (changed and each.is_like(leading) and each.rate < leading.rate):
                each.take(leading)
        self._tell(position, "all run again", reason)
        if changed:
            self._begin_anew(position)

    def _begin_anew(self, position: int) -> None:
        """What the leader knows may be worth nothing now: a copy learns beside it from the weights of the beginning.

        It is the spare one; if that one leads, the copy that it was the twin of.
        """
        leading, num = self._leading, len(self._copies) - self._num_spare
        for place in range(self._num_spare):
            number = place if self._copies[num + place] is leading else num + place
            if self._copies[number].model != leading.model:
                continue
            self._copies[number].begin_anew(self._first[leading.model], self._copies[num + place].rate)
            self._scores.forget(number)
            self.standings.restart(number)
            self._tell(position, "begins anew", self._copies[number].name)

    def _widen(self, reopened: list[Copy]) -> None:
        """If the leader has the lowest or highest rate of its kind, the one at the other end goes beyond it."""
        leading = self._leading
        regular = self._copies[: len(self._copies) - self._num_spare]
        kind = sorted((each for each in regular if each.is_like(leading)), key=lambda each: each.rate)
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


def _new(piece: Chunk) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
    """(N,) whether a lesson is new, not replayed, and (N + 1,) how many new ones stand before each and the end."""
    is_new = np.ones(len(piece), bool) if piece.numbers is None else piece.numbers >= 0
    return is_new, np.concatenate([[0], np.cumsum(is_new)])


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
