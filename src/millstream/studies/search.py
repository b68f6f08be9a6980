"""A search for settings: generations of trials, suggested by Optuna, halved on the way, kept in a SQLite file.

A generation is asked for at once, advances in lockstep and is written down at once, so that a search that was killed
goes on with the generation that it was at, and finds what it would have found. Each generation is suggested from a seed
and the trials before it. Needs the extra ``tune``: this is the one file that imports Optuna.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from millstream.errors import CheckpointError, MissingPackageError, SettingError
from millstream.storage import take_lock
from millstream.studies.population import RUNGS, Population
from millstream.studies.space import Space

try:
    import optuna
    from optuna.trial import TrialState
    from sqlalchemy import event
except ImportError as error:
    raise MissingPackageError(
        got="a search without Optuna", wanted="the extra `tune`", do="pip install 'millstream[tune]'"
    ) from error

__all__ = ["Found", "Search", "survivors"]

# One in so many goes on. With 3, what was best in the first third of a stream often fell behind later.
_FACTOR = 2
_MOST_DRAWS = 8  # of one trial, until its settings are new
_FILE = "study.sqlite"
_MAKES = Callable[[Sequence[dict[str, Any]]], Population]


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """One trial that has ended."""

    number: int  # among those that ended
    generation: int
    values: dict[str, Any]  # of the dimensions
    settings: dict[str, Any]
    scores: list[float]  # after each rung that it reached
    finished: bool  # it reached the last one

    @property
    def score(self) -> float:
        return self.scores[-1]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"score": self.score}


class Search:
    """A study in a folder. ``facts``, which are JSON, are what all its trials have in common, also when it goes on.

    ``make`` gives the population of some settings. Raises ``SettingError`` for a folder that holds a study, unless
    ``resume``; ``CheckpointError`` where there is none to resume, or one of other facts.
    """

    def __init__(
        self, folder: Path, space: Space, facts: Mapping[str, Any], make: _MAKES, *, seed: int = 0, resume: bool = False
    ) -> None:
        self._space, self._make, self._seed = space, make, seed
        path = folder / _FILE
        if path.exists() and not resume:
            raise SettingError(
                got=f"a folder that holds a study already: {folder}",
                wanted="a new folder",
                do="add --resume to go on with it, or name another folder with --run",
            )
        if resume and not path.exists():
            raise CheckpointError(got=f"no study in {folder}", wanted="one to resume", do="leave out --resume")
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("a")
        self._take_lock(folder)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        event.listen(self._storage.engine, "connect", _write_ahead)
        self._storage.engine.dispose()  # connections that were made without it
        self._study = optuna.create_study(storage=self._storage, study_name="millstream", load_if_exists=True)
        try:
            self._check(facts, folder)
        except CheckpointError:
            self.close()
            raise

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the folder back."""
        self._storage.remove_session()
        self._storage.engine.dispose()
        self._lock.close()

    def run(self, num_trials: int, size: int, show: Callable[[str, int, int], None]) -> list[Found]:
        """Goes on until ``num_trials`` have ended, ``size`` in a generation; gives all of them, the best one first."""
        self._put_right()
        while (done := len(self.found())) < num_trials:
            self._generation(min(size, num_trials - done), done, num_trials, show)
        return sorted(self.found(), key=_rank)

    def found(self) -> list[Found]:
        """The trials that have ended, in their order."""
        made = []
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        for number, trial in enumerate(ended):
            scores = [value for _, value in sorted(trial.intermediate_values.items())]
            facts = number, trial.user_attrs["generation"], dict(trial.params), self._space.settings(trial.params)
            made.append(Found(*facts, scores, trial.state == TrialState.COMPLETE))
        return made

    def _take_lock(self, folder: Path) -> None:
        """Two processes would each take the other's trials for those of a search that was killed."""
        if not take_lock(self._lock):
            self._lock.close()
            raise SettingError(
                got=f"a study that is open already, here or in another process: {folder}",
                wanted="a study of one's own",
                do="wait for it, or name another folder with --run",
            )

    def _check(self, facts: Mapping[str, Any], folder: Path) -> None:
        now = json.loads(json.dumps(dict(facts), default=str))
        was = self._study.user_attrs.get("facts")
        if was is None:
            self._study.set_user_attr("facts", now)
            return
        for name in {**was, **now}:
            if was.get(name) != now.get(name):
                raise CheckpointError(
                    got=f"{name} {str(now.get(name))[:80]} for a study that began with {str(was.get(name))[:80]}",
                    wanted="the settings that it began with",
                    do=f"repeat the first command with --resume, or name another folder than {folder}",
                )

    def _put_right(self) -> None:
        """What a search that was killed left half done: told if its scores are known, else to be made again."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)):
            number = trial.number
            if trial.state == TrialState.WAITING:
                number = self._study.ask().number
            known = self._study.user_attrs.get(f"generation {trial.user_attrs.get('generation')}", {})
            if str(number) in known:
                self._tell(number, known[str(number)])
            else:
                self._study.tell(number, state=TrialState.FAIL)

    def _generation(self, size: int, done: int, total: int, show: Callable[[str, int, int], None]) -> None:
        ended = self.found()
        generation = 1 + max((trial.generation for trial in ended), default=-1)
        known = [trial.settings for trial in ended]
        trials = [self._asked(generation, done + place, known) for place in range(size)]
        population = self._make([self._space.settings(trial.params) for trial in trials])
        scores: list[list[float]] = [[] for _ in trials]
        best = f"{min(t.score for t in ended if t.finished):.4g}" if any(t.finished for t in ended) else "not yet"
        for rung, share in enumerate(RUNGS):
            told = f"generation {generation + 1}, {len(population.alive)} left, best {best}"

            def shown(part: float, told: str = told) -> None:
                show(f"{part:.0%} of {told}", done + size - len(population.alive), total)

            found = {place: min(score, 1e300) for place, score in population.advance(share, shown).items()}
            for place, score in found.items():
                scores[place].append(score)
            if rung + 1 < len(RUNGS):
                earlier = [trial.scores[rung] for trial in ended if len(trial.scores) > rung]
                population.alive = survivors(found, earlier)
                if not population.alive:
                    break
        self._study.set_user_attr(
            f"generation {generation}", {str(trial.number): scores[place] for place, trial in enumerate(trials)}
        )
        for place, trial in enumerate(trials):
            self._tell(trial.number, scores[place])
        show(f"generation {generation + 1} has ended", done + size, total)

    def _asked(self, generation: int, place: int, known: list[dict[str, Any]]) -> optuna.trial.Trial:
        """The next trial: one to begin with, or as the sampler suggests from those before this generation.

        Settings that are ``known`` already are drawn again, a few times.
        """
        starts = self._space.starts()
        for attempt in range(_MOST_DRAWS):
            key = ((self._seed * 1_000_003 + place) * _MOST_DRAWS + attempt) % 2**32
            # The liar takes trials that run for bad ones, so that a generation is not all alike.
            sampler = optuna.samplers.TPESampler(seed=key, constant_liar=True)
            is_stuck = attempt >= _MOST_DRAWS // 2
            self._study.sampler = optuna.samplers.RandomSampler(seed=key) if is_stuck else sampler
            if place < len(starts):
                self._study.enqueue_trial(starts[place])
            trial = self._study.ask()
            trial.set_user_attr("generation", generation)
            self._suggest(trial)
            if place < len(starts) or self._space.settings(trial.params) not in known:
                break
            if attempt + 1 < _MOST_DRAWS:
                self._study.tell(trial.number, state=TrialState.FAIL)
        known.append(self._space.settings(trial.params))
        return trial

    def _suggest(self, trial: optuna.trial.Trial) -> None:
        for each in self._space.dimensions:
            if not each.is_asked(trial.params):
                continue
            if each.kind == "choice":
                trial.suggest_categorical(each.name, each.choices)
            elif each.kind == "power":
                trial.suggest_int(each.name, int(each.low), int(each.high))
            else:
                trial.suggest_float(each.name, each.low, each.high, log=True)

    def _tell(self, number: int, scores: Sequence[float]) -> None:
        frozen = self._study.trials[number]
        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        for rung, score in enumerate(scores):
            if rung + 1 not in frozen.intermediate_values:
                trial.report(score, rung + 1)
        if len(scores) == len(RUNGS):
            self._study.tell(number, scores[-1])
        else:
            self._study.tell(number, state=TrialState.PRUNED)


def survivors(scores: Mapping[int, float], earlier: Sequence[float]) -> list[int]:
    """Who goes on from a rung: the best half of these, as far as they are in the best half of all that came so far.

    >>> survivors({0: 0.3, 1: 0.1, 2: 0.2, 3: 0.9}, [])
    [1, 2]
    >>> survivors({0: 0.3, 1: 0.1, 2: 0.2}, [0.01, 0.02, 0.03])
    []
    """
    everyone = sorted([*scores.values(), *earlier])
    bound = everyone[math.ceil(len(everyone) / _FACTOR) - 1]
    best = sorted(scores, key=lambda place: (scores[place], place))[: math.ceil(len(scores) / _FACTOR)]
    return sorted(place for place in best if scores[place] <= bound and scores[place] < 1e300)


def _write_ahead(connection: Any, _: Any) -> None:
    """What is committed outlives the process at once, and the machine soon; a file is never torn. 10 times as fast."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _rank(trial: Found) -> tuple[bool, int, float, int]:
    return not trial.finished, -len(trial.scores), trial.score, trial.number
