"""THE loop: read, predict, learn, score, save. Batch and online differ in the source and in the update size only.

    for chunk in source.read(position):     consecutive records, as named columns or tensors
        learner.prepare(chunk)              named columns -> tensors
        learner.learn(chunk, update_size)   predict, score, update, one update after another
        metrics.update(scored)              since the start, and over a window
        run.commit(state)                   everything, at once, now and then

The trainer knows contracts; it does not know which source, features, engine or metric it drives.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from millstream import engines, evaluation, losses, sources
from millstream.books import Books
from millstream.commits import Seconds
from millstream.contracts import Chunk, Loss, Sink, Source, State, Stoppable
from millstream.controllers import Controller, Count, Plan
from millstream.delay import LabelDelay
from millstream.errors import CheckpointError, DataError, MillstreamError, SettingError
from millstream.features import Features
from millstream.joining import LabelJoin
from millstream.learner import Learner, Scored, check_version, load_or_refuse
from millstream.metrics import Metrics
from millstream.phase import Phase, Step, Summary, in_journal, parse_lateness
from millstream.publishing import Publisher
from millstream.runs import Run

__all__ = ["Trainer"]


class Trainer:
    """Trains one model in batches and online, keeping weights, optimizer and counters from one to the other.

    ``loss`` is a name (``losses.NAMES``) or a callable that gives one value per record. ``optimizer`` is one of torch;
    without one, several learning rates race (``engines.RaceEngine``), as do several optimizers that are given as
    functions of the parameters. ``scheduler`` steps after every update, or after every epoch if so told.
    ``clip_norm`` and ``clip_value`` bound an update's gradient. ``scoring`` says in which mode a record is predicted
    before its update; ``auto`` is eval mode when learning online, and the update's own output when fitting. ``replay``
    (0.2), ``drift`` and ``average`` see ``engines.Around``. ``outcomes`` is where each goes (``sinks.open_sink``), and
    ``publish`` where good weights go (``Publisher``). ``run`` is a folder for what is saved, if anything.

    >>> model = nn.Linear(3, 2)
    >>> trainer = Trainer(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1))
    >>> summary = trainer.learn((torch.randn(100, 3), torch.randint(2, (100,))))
    >>> summary.records, summary.updates
    (100, 100)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss | Callable[[Any, Tensor], Tensor] = "cross_entropy",
        optimizer: torch.optim.Optimizer | engines.Racing | None = None,
        *,
        features: Features | None = None,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        scheduler_steps: Literal["update", "epoch"] = "update",
        clip_norm: float | None = None,
        clip_value: float | None = None,
        class_weights: Tensor | Sequence[float] | None = None,
        scoring: Literal["auto", "eval", "train"] = "auto",
        replay: str | float | None = None,
        drift: str | None = None,
        average: float | None = None,
        engine: str = "auto",
        device: str | torch.device | None = None,
        seed: int = 0,
        window: int = 1000,
        max_skips: int = 100,
        outcomes: Sink | str | Path | None = None,
        publish: Publisher | str | Path | None = None,
        run: str | Path | None = None,
        commit_seconds: Seconds = "auto",
        report_records: int = 10_000,
        spec: dict[str, Any] | None = None,
    ) -> None:
        model = model if device is None else model.to(device)
        by_epoch = scheduler_steps == "epoch" or isinstance(scheduler, ReduceLROnPlateau)  # which waits for a loss
        resolved = losses.resolve(loss, class_weights, engines.parameter_of(model))
        bounds = {"scheduler": None if by_epoch else scheduler, "clip_norm": clip_norm, "clip_value": clip_value}
        around = engines.Around(replay, drift, average)
        chosen = engines.prepare(engine, model, resolved, optimizer, around, seed=seed, **bounds)
        self.learner = Learner(chosen.rule, chosen, features)
        self.seed, self.spec = seed, spec
        self.position = 0  # run position of the next record to be learned
        self.consumed = 0  # places that were read, over all phases
        kept = {"window": window, "max_skips": max_skips, "report_records": report_records}
        self._books = Books(self.learner, outcomes=outcomes, publish=publish, **kept)
        self._per_epoch = scheduler if by_epoch else None
        self._scoring, self._commit_seconds = scoring, commit_seconds
        self._phase: Phase | None = None
        self._source: Source | None = None  # of the phase
        self._controller = Controller(Plan(1, 1), self.learner, None)  # of the phase
        self._delay: LabelDelay | LabelJoin | None = None
        self._num_epochs = 0  # of all phases: the key of the next shuffle
        self._whole = True  # False while a chunk is half done
        self._stop = self._checked = False
        self._checkpoint: Path | None = None
        self.run: Run | None = None
        if run is not None:
            self.open(run)

    def fit(
        self,
        source: Any,
        *,
        batch_size: Count = "auto",
        epochs: Count = "auto",
        validation: Any = None,
        shuffle: bool = True,
        schedule: str = "",
        warmup: float = 0.0,
        resume: bool = False,
    ) -> Summary:
        """Mini-batch training: ``epochs`` passes over a finite source, each in a new order, ``batch_size`` an update.

        ``validation`` is a source, or the fraction of the records to hold out; it is evaluated after every epoch. With
        ``"auto"`` the batch size follows the noise of the gradient, and the rate falls when validation (by itself of a
        tenth of the records) stops improving, until training ends with the best weights. ``schedule`` is constant,
        linear or cosine, after a rise over the share ``warmup`` of all updates. ``resume`` goes on with an unfinished
        ``fit`` of a restored trainer, from the record where it stood.
        """
        test = None
        how: dict[str, Any] = {"shuffle": shuffle, "validation": validation, "schedule": schedule, "warmup": warmup}
        for step in self.steps(source, kind="fit", update_size=batch_size, epochs=epochs, resume=resume, **how):
            test = step.validation or test
        return self.summary(test)

    def learn(self, source: Any, *, update_size: int = 1, label_delay: Any = None, resume: bool = False) -> Summary:
        """Online training: every record once, in order; predicted, scored, then learned.

        With ``label_delay`` (records, a time such as ``2h``, or ``join``) a record is learned when its label comes.
        """
        collections.deque(self.steps(source, update_size=update_size, label_delay=label_delay, resume=resume), maxlen=0)
        return self.summary()

    def steps(
        self,
        source: Any,
        *,
        kind: Literal["fit", "learn"] = "learn",
        update_size: Count = 1,
        epochs: Count = 1,
        shuffle: bool = False,
        label_delay: Any = None,
        validation: Any = None,
        schedule: str = "",
        warmup: float = 0.0,
        resume: bool = False,
    ) -> Iterator[Step]:
        """The generator beneath ``fit`` and ``learn``: yields after every chunk, and after every epoch's validation.

        To stop early, leave the loop: weights, optimizer and counters agree at every step. Call ``commit`` then, if
        there is a run to resume: what follows the last timed commit is not saved by itself.
        """
        plan = Plan(update_size, epochs, schedule, warmup)
        how: dict[str, Any] = {"shuffle": shuffle, "seed": self.seed, "validates": epochs == "auto"}
        source, validation = sources.training_sources(source, validation, **how)
        asked = Phase.asked(kind, plan, shuffle, parse_lateness(label_delay), source, self.learner, self.seed)
        phase = self._enter(source, asked, resume)
        if self.run is not None:
            source = self.run.recorded(source, phase.before, None if resume else phase.reference())
        self._source = source
        if resume:
            sources.check_goes_on(source, phase.position)
        else:
            phase.refuse_import(self.run, sources.imported(source))
        self.commit()  # from here on there is something to resume
        try:
            while not (phase.finished or self._stop):
                yield from self._epoch(source, phase)
                if not self._stop:
                    yield self._end_epoch(phase, validation)
        except MillstreamError:
            if self._whole:  # what was learned before the bad record is kept
                self.commit()
            raise
        finally:
            self._stop = False
        self.commit()

    def evaluate(self, source: Any) -> dict[str, float]:
        """The metrics of the model as it is, over all records of ``source``; nothing is learned."""
        return evaluation.evaluate(self.learner, sources.as_source(source))

    def predict(self, source: Any, *, raw: bool = False) -> Tensor:
        """(N, C) probabilities of classes, (N,) probabilities of a binary label, or (N,) numbers; ``raw``: logits."""
        return evaluation.predict(self.learner, sources.as_source(source), raw=raw)

    def summary(self, test: dict[str, float] | None = None) -> Summary:
        """What the phase came to so far."""
        phase = self._phase
        if phase is None:
            raise SettingError(
                got="a trainer that has not trained", wanted="a phase to sum up", do="call fit or learn first"
            )
        changes = self.run.numerics_changes if self.run else 0
        return phase.summary(self.learner.engine, self._books.report(), test, self._checkpoint, changes)

    def stop(self) -> None:
        """Asks the loop to end after the chunk that it is at; for signal handlers and other threads."""
        self._stop = True
        if isinstance(self._source, Stoppable):
            self._source.stop()  # or it would wait for records that may never come

    @property
    def metrics(self) -> Metrics | None:
        """Those of this phase; None before its first record was scored."""
        return self._books.metrics

    @property
    def learning_rate(self) -> float:
        """That of the optimizer's first parameter group, now; of several, that of the one that leads."""
        return self.learner.engine.learning_rate

    def commit(self) -> Path | None:
        """Commits all state to the run folder at once; does nothing without one. Saving changes nothing."""
        self._books.sync()
        if self.run is not None:
            self._checkpoint = self.run.commit(self.state_dict())
        return self._checkpoint

    def open(self, run: str | Path, *, resume: bool = False, exact: bool = False) -> list[str]:
        """Writes to this run folder from now on. ``resume`` first brings back its newest whole checkpoint.

        Gives warnings: damaged checkpoints that were passed over, and other numerics, which ``exact`` refuses.
        """
        self._give_back()
        self.run = Run(run, resume=resume, commit_seconds=self._commit_seconds, exact=exact)
        if not resume:
            return []
        state, warnings = self.run.restore()
        self.load_state_dict(state)
        self._books.check_goes_on()
        return warnings

    def close(self) -> None:
        """Gives the run folder and the sink back, so that others may open them."""
        self._give_back()
        self._books.close()

    def _give_back(self) -> None:
        if self.run is not None:
            self.run.close()
            self.run = None

    def state_dict(self) -> State:
        """Everything that must agree, between two chunks."""
        if not self._whole:
            raise CheckpointError(
                got="a trainer that was interrupted in the middle of a chunk",
                wanted="weights and counters that agree",
                do="restore the last checkpoint of the run",
            )
        return {
            "version": 1,
            "spec": self.spec,
            "position": self.position,
            "consumed": self.consumed,
            "num_epochs": self._num_epochs,
            "books": self._books.state_dict(),
            "phase": None if self._phase is None else self._phase.to_state(),
            "controller": self._controller.state_dict(),
            "delay": None if self._delay is None else self._delay.state_dict(),
            "per_epoch": None if self._per_epoch is None else dict(self._per_epoch.state_dict()),
            "learner": self.learner.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        check_version(state)
        self._phase = None if state["phase"] is None else Phase.from_state(state["phase"])
        if self._phase is not None:
            self._control(self._phase).load_state_dict(state["controller"])
        self.learner.load_state_dict(state["learner"])
        self.position, self.consumed, self._num_epochs = state["position"], state["consumed"], state["num_epochs"]
        self._books.load_state_dict(state["books"])
        self._delay = None if state["delay"] is None or self._phase is None else self._phase.late_labels()
        if self._delay is not None:
            self._delay.load_state_dict(state["delay"])
        load_or_refuse(self._per_epoch, state["per_epoch"], "a scheduler that steps after an epoch")
        self._whole = True

    def _epoch(self, source: Source, phase: Phase) -> Iterator[Step]:
        """The rest of an epoch, from where it stands."""
        ordered = sources.Shuffled(source, seed=self.seed, epoch=self._num_epochs) if phase.shuffle else source
        size = 0
        while size != phase.chunk_size:  # of the next updates, which may be larger
            size = phase.chunk_size
            started = time.perf_counter()
            for chunk in ordered.read(phase.position, size=size):
                self._controller.obey(self.run, self.consumed, self.position)
                step = self._take(chunk, phase)
                phase.seconds += time.perf_counter() - started
                yield step
                self._books.check()
                if self._stop:
                    return
                if size != phase.chunk_size:
                    break
                started = time.perf_counter()

    def _take(self, chunk: Chunk, phase: Phase) -> Step:
        """All that happens to a chunk, in order."""
        chunk.start = self.position
        self._whole = False
        try:
            chunk = self.learner.prepare(chunk, learn=phase.features_learn, late=self._delay)
        except DataError:
            self._whole = True  # features take a chunk in whole, or not at all
            raise
        scored: Scored | None = None
        num_positions = chunk.span
        if not len(chunk) and isinstance(self._delay, LabelDelay):
            num_positions = self._delay.pass_over(chunk.span)
        if len(chunk) or isinstance(self._delay, LabelJoin):
            scored = self._score(chunk, phase)
            if self._delay is not None:
                num_positions = scored.num_learned
        self._books.take(scored, phase, chunk, self.consumed, (self.position, num_positions), self.run)
        if phase.epoch == 0:
            phase.refuse(self.run, chunk, scored, self.position)
        phase.advance(chunk, scored)
        self.position += num_positions
        self.consumed += chunk.span
        self._whole = True
        if scored is not None:
            phase.update_size, phase.noise_scale = self._controller.after_chunk(scored, self.position)
            phase.chunk_size = self.learner.engine.chunk_size(phase.update_size)
        self._books.publish(self.position, phase, self.spec, self.run)
        self._controller.note_events(self.run)
        if self.run is not None:
            self._checkpoint = self.run.commit_if_due(self._books.synced(self.state_dict)) or self._checkpoint
        return phase.step(self.learning_rate, scored, len(chunk), epoch=phase.epoch)

    def _score(self, chunk: Chunk, phase: Phase) -> Scored:
        """Predicts, scores and learns. Where that fails, ``position`` tells what was learned."""
        try:
            if not self._checked and len(chunk):
                self.learner.check(chunk)
                self._controller.look_at(chunk)
                self._checked = True
            frozen = not phase.features_learn
            return self.learner.learn(chunk, phase.update_size, self.position, self._delay, frozen=frozen)
        except MillstreamError as error:
            num_learned = getattr(error, "num_learned", 0)
            self.position += num_learned
            # Features and late labels have taken the chunk up by now; without them, nothing has changed.
            self._whole = not num_learned and self.learner.features is None and self._delay is None
            raise

    def _enter(self, source: Source, asked: Phase, resume: bool) -> Phase:
        """Begins a phase, or goes on with the one that was restored."""
        if resume and self._phase is not None:
            self._phase.continue_as(asked)
        else:
            if self._phase is not None:
                asked.number, asked.before = self._phase.number + 1, in_journal(self._phase)
            self._control(asked).begin(asked.kind)
            self._books.begin()
            self._phase = asked
            self._delay = asked.late_labels(self._delay, self.consumed)
        self.learner.begin(asked.kind, self._scoring)
        self._checked = False
        return self._phase

    def _control(self, phase: Phase) -> Controller:
        self._controller.end()
        is_free = self.learner.rule.scheduler is None and self._per_epoch is None
        self._controller = Controller(Plan(**phase.plan), self.learner, phase.total, is_free=is_free)
        return self._controller

    def _end_epoch(self, phase: Phase, validation: Source | None) -> Step:
        test = None if validation is None else self.evaluate(validation)  # may fail: nothing has ended yet
        phase.epoch, phase.position, phase.place = phase.epoch + 1, None, 0
        self._num_epochs += 1
        line = phase.line(self.learner.engine, self.position, self._books.report())
        line |= {} if test is None else {"test": test}
        phase.finished, test = self._controller.after_epoch(self.position, test, is_last=phase.epoch == phase.epochs)
        if self._per_epoch is not None:
            engines.step_after_epoch(self._per_epoch, (test or self._books.report()).get("loss"))
        if self.run is not None:
            self.run.report(line)
            if phase.finished:
                self.run.refer(**phase.reference())
        self._controller.note_events(self.run)
        self.commit()
        return phase.step(self.learning_rate, None, 0, epoch=phase.epoch - 1, validation=test)
