"""``millstream compare``: an honest answer to "which strategy for my data?".

On a finite set, batch and online start from the same weights and learn the same records, each at the given rate and at
its own best of a grid, over several seeds, and are scored on records that neither has seen. On data in the order of
time arms run forward through it, at every label delay: online, micro-batch, retrained at times, trained once. Beside
them runs what nobody gave a rate: several race.

Arms run in processes of their own, one thread each. This file plans and gathers; ``arms`` runs, ``report`` draws.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from millstream.assembly import Data, Recipe, build
from millstream.controllers import Count
from millstream.errors import SettingError
from millstream.studies.arms import Arm, open_once, run
from millstream.studies.gradient import gradient_variance
from millstream.studies.plan import Plan, Settings, make_plan
from millstream.studies.statistics import interval, score_text, verdict

__all__ = ["Settings", "compare"]

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all
Scores = dict[tuple[str, str], list[dict[str, Any]]]  # by kind and delay


def compare(
    data: tuple[tuple[str, Any], ...], recipe: Recipe, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Runs the comparison. ``data`` are the arguments of ``open_data``; the result is JSON, with a verdict."""
    torch.set_num_threads(1)  # as in the arms: what is measured here is what they will take
    opened = open_once(data)
    num_processes = settings.num_processes or os.cpu_count() or 1
    results = []
    with _processes(num_processes) as pool:
        ends = None if settings.seconds is None else time.monotonic() + settings.seconds
        for place, model in enumerate(settings.models):
            share = None if ends is None else (ends - time.monotonic()) / (len(settings.models) - place)
            study = _Study(
                data, opened, dataclasses.replace(recipe, model=model), settings, num_processes, share, pool, progress
            )
            results.append(study.forward() if opened.ordered else study.shuffled())
    first, others = results[0], results[1:]
    return {**first, "others": others}


@contextlib.contextmanager
def _processes(number: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for arms. What stops the comparison, be it an error or Ctrl-C, stops them at once."""
    context = multiprocessing.get_context("spawn")
    # Ctrl-C goes to all processes of a terminal; the first one decides.
    with ProcessPoolExecutor(
        number, mp_context=context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


class _Study:
    """One model's comparison."""

    def __init__(
        self,
        data: tuple[tuple[str, Any], ...],
        opened: Data,
        recipe: Recipe,
        settings: Settings,
        num_processes: int,
        seconds: float | None,
        pool: ProcessPoolExecutor,
        progress: Progress,
    ) -> None:
        self._data, self._opened, self._recipe, self._settings = data, opened, recipe, settings
        self._pool, self._progress, self._done, self._total = pool, progress, 0, 1
        self._plan: Plan = make_plan(opened, recipe, settings, num_processes, seconds)
        target = opened.schema.target
        self._metric = "accuracy" if target is not None and target.kind == "class" else "mae"

    def shuffled(self) -> dict[str, Any]:
        """Batch and online on a finite set."""
        settings, plan = self._settings, self._plan
        given = settings.learning_rate or 0.01
        kinds = {"batch": (settings.batch_size, plan.epochs), "online": (1, 1)}
        grids = [
            self._arm(kind, kind, size, rate, plan.seeds[0], epochs=1, num_records=plan.grid_records, validate=2000)
            for kind, (size, _) in kinds.items()
            for rate in settings.rates
        ]
        self._total = len(grids) + 3 * len(kinds) * len(plan.seeds)
        scores = self._grid(self._run_all(grids))
        arms = []
        for kind, (size, epochs) in kinds.items():
            best = _best(scores[kind, "0"], self._metric)
            for name, rate in ((kind, given), (f"{kind}_tuned", best)):
                if name != kind and best == given:
                    continue
                arms += [self._arm(name, kind, size, rate, seed, epochs=epochs) for seed in plan.seeds]
        for kind, (_, epochs) in kinds.items():
            asked: Count = "auto" if kind == "batch" else 1
            arms += [self._arm(f"{kind}_auto", kind, asked, None, seed, epochs=epochs) for seed in plan.seeds]
        gathered = self._gather(self._run_all(arms), f"test_{self._metric}")
        for kind in kinds:
            if f"{kind}_tuned" not in gathered:  # the given rate was the best one
                gathered[f"{kind}_tuned"] = dict(gathered[kind])
            gathered[f"{kind}_tuned"]["grid"] = scores[kind, "0"]
        order = ("batch", "online", "batch_tuned", "online_tuned", "batch_auto", "online_auto")
        strategies = {name: {**gathered[name], "title": self._title(name, gathered[name])} for name in order}
        result = self._result(strategies)
        result["target_" + self._metric] = _times_to_target(strategies, self._metric, settings.target)
        trainer = build(self._recipe)
        trainer.learner.prepare(
            self._opened.train.take(np.arange(min(2000, self._opened.train.num_records or 0))), learn=True
        )
        result["gradient_variance"] = gradient_variance(trainer, self._opened.train)
        result["verdict"] = verdict(result)
        return result

    def forward(self) -> dict[str, Any]:
        """The arms through time, at each delay, each at its own best rate unless one is given."""
        settings, plan = self._settings, self._plan
        sizes = {
            "online_auto": 1,
            "online": 1,
            "micro_batch": settings.batch_size,
            "retrain": settings.batch_size,
            "frozen": settings.batch_size,
        }
        delays = settings.delays or ("0",)
        grids = []
        if settings.learning_rate is None:
            for delay in delays:
                for kind in ("online", "micro_batch", "frozen"):
                    first = plan.grid_records // 2 if kind == "frozen" else plan.grid_records // 5
                    grids += [
                        self._forward_arm(kind, kind, sizes[kind], rate, plan.seeds[0], delay, first, plan.grid_records)
                        for rate in settings.rates
                    ]
        self._total = len(grids) + len(delays) * len(sizes) * len(plan.seeds)
        scores = self._grid(self._run_all(grids))
        arms = []
        for delay in delays:
            for name, size in sizes.items():
                kind, rate = name.removesuffix("_auto"), self._rate(name, delay, scores)
                arms += [
                    self._forward_arm(name, kind, size, rate, seed, delay, plan.first_scored, plan.num_records)
                    for seed in plan.seeds
                ]
        rows = self._run_all(arms)
        answers = []
        for delay in delays:
            found = self._gather([row for row in rows if row["delay"] == delay], f"prequential_{self._metric}")
            strategies = {}
            for name in sizes:
                strategies[name] = {**found[name], "title": self._title(name, found[name])}
                grid = scores.get(("frozen" if name == "retrain" else name, delay))
                if grid:
                    strategies[name]["grid"] = grid
            answer = {**self._result(strategies), "delay": delay, "baselines": found["online"]["baselines"]}
            answers.append({**answer, "verdict": verdict(answer)})
        result = dict(answers[0])
        result.pop("delay")
        result["notes"].append(
            "Rates were chosen on the first records, which are not scored; what is retrained has the rate of what is "
            "trained once."
        )
        result["delays"] = [
            {name: answer[name] for name in ("delay", "strategies", "baselines", "verdict")} for answer in answers
        ]
        return result

    def _rate(self, name: str, delay: str, scores: Scores) -> float | None:
        """The given rate, or the best one of the grid; None for an arm that sets its own."""
        if name.endswith("_auto"):
            return None
        grid = scores.get(("frozen" if name == "retrain" else name, delay))
        return self._settings.learning_rate or _best(grid or [], self._metric)

    def _arm(self, name: str, kind: Any, size: Count, rate: float | None, seed: int, **changes: Any) -> Arm:
        recipe = dataclasses.replace(self._recipe, learning_rate=rate, seed=seed)
        if rate is None:
            recipe = dataclasses.replace(recipe, optimizer="auto")
        changes.setdefault("num_records", self._plan.num_records)
        return Arm(name, kind, self._data, recipe, size, **changes)

    def _forward_arm(
        self, name: str, kind: str, size: int, rate: float | None, seed: int, delay: str, first: int, num: int
    ) -> Arm:
        return self._arm(
            name,
            kind,
            size,
            rate,
            seed,
            epochs=self._plan.epochs if kind in ("retrain", "frozen") else 1,
            num_records=num,
            forward=True,
            first_scored=first,
            delay=delay,
            retrain_every=self._plan.retrain_every,
        )

    def _run_all(self, arms: Iterable[Arm]) -> list[dict[str, Any]]:
        """Runs arms, the long ones first; gives their results in the order of ``arms``."""
        arms = list(arms)
        longest = sorted(range(len(arms)), key=lambda place: self._plan.cost(arms[place]), reverse=True)
        futures = {self._pool.submit(run, arms[place]): place for place in longest}
        results: list[dict[str, Any]] = [{}] * len(arms)
        for future in as_completed(futures):
            place = futures[future]
            results[place] = future.result()
            self._done += 1
            arm = arms[place]
            rate = "" if arm.sets_rate else f" η={arm.recipe.learning_rate:g}"
            text = f"{arm.recipe.model} {arm.name.replace('_', ' ')}{rate} seed {arm.recipe.seed}"
            self._progress(text, self._done, self._total)
        return results

    def _grid(self, rows: list[dict[str, Any]]) -> Scores:
        """Scores by rate for each kind of arm and delay."""
        found: Scores = {}
        for row in rows:
            score = row.get(f"test_{self._metric}", row.get(f"prequential_{self._metric}"))
            entry = {"learning_rate": row["learning_rate"], "score": None if row["diverged"] else score}
            found.setdefault((row["kind"], row["delay"]), []).append(entry)
        return found

    def _gather(self, rows: list[dict[str, Any]], score: str) -> dict[str, dict[str, Any]]:
        """The runs of each arm over its seeds: the medians, the intervals, and the curve of the median run."""
        found = {}
        for name in dict.fromkeys(row["name"] for row in rows):
            runs = [row for row in rows if row["name"] == name]
            middle = sorted(runs, key=lambda row: (row.get(score) is None, row.get(score)))[(len(runs) - 1) // 2]
            summed = dict(middle)
            for key in ("seconds", "records_per_second"):
                summed[key] = float(np.median([row[key] for row in runs]))
            for key in [k for k in middle if k.startswith(("test_", "prequential_"))]:
                values = [row[key] for row in runs if row.get(key) is not None]
                summed[key] = float(np.mean(values)) if values else None
                summed[f"{key}_interval"] = interval(values)
            keys = ("seed", "seconds", "diverged", *(k for k in middle if k.startswith(("test_", "prequential_"))))
            summed["runs"] = [{key: row.get(key) for key in keys} for row in runs]
            found[name] = summed
        return found

    def _title(self, name: str, arm: dict[str, Any]) -> str:
        size = {"online": "one record at a time", "frozen": "trained once"}.get(arm["kind"])
        if arm["kind"] == "retrain":
            size = f"retrained every {self._plan.retrain_every:,} records"
        if arm["sets_rate"] and arm["kind"] == "batch":
            size = f"batches as the noise has them, at last of {arm['update_size']}"
        size = size or f"{'mini' if arm['kind'] == 'batch' else 'micro'}-batches of {arm['update_size']}"
        if arm["kind"] == "batch" and self._plan.epochs > 1:
            size += f", {self._plan.epochs} passes"
        if arm["sets_rate"]:
            return f"{arm['kind']}: {size}, no rate given"
        best = ", chosen in a trial" if "grid" in arm or name.endswith("_tuned") else ""
        return f"{arm['kind'].replace('_', '-')}: {size}, η = {arm['learning_rate']:g}{best}"

    def _result(self, strategies: dict[str, dict[str, Any]]) -> dict[str, Any]:
        recipe, opened, plan = self._recipe, self._opened, self._plan
        target = opened.schema.target
        assert target is not None
        for arm in strategies.values():  # the same keys for every arm; null is what it is not scored by
            for key in (f"test_{self._metric}", "test_loss", f"prequential_{self._metric}"):
                arm.setdefault(key, None)
            arm.setdefault("skipped", 0)
        return {
            "data": opened.name,
            "data_info": {
                "records": opened.train.num_records,
                "test_records": None if opened.test is None else opened.test.num_records,
                "task": target.kind,
                "num_outputs": target.num_outputs,
                "ordered": opened.ordered,
            },
            "metric": self._metric,
            "model": recipe.model,
            "seed": recipe.seed,
            "seeds": len(plan.seeds),
            "loss": recipe.loss_name,
            "optimizer": recipe.optimizer,
            "engine": next(iter(strategies.values()))["engine"],
            "budget": plan.describe(),
            "threads": 1,
            "processes": plan.num_processes,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "strategies": strategies,
            "delays": None,
            "baselines": None,
            "gradient_variance": None,
            "notes": [*_notes(recipe.model, plan), *self._beside(strategies)],
        }

    def _beside(self, strategies: dict[str, dict[str, Any]]) -> Iterator[str]:
        """What no rate comes to beside the best one of the grid, and what it costs, in a sentence."""
        for name, auto in strategies.items():
            chosen = strategies.get(f"{auto['kind']}_tuned") or strategies.get(auto["kind"])
            if not name.endswith("_auto") or chosen is None:
                continue
            key = next(k for k in (f"test_{self._metric}", f"prequential_{self._metric}") if k in auto)
            key = f"prequential_{self._metric}" if self._opened.ordered else key
            scores = score_text(self._metric, auto[key]), score_text(self._metric, chosen[key])
            speeds = f"{auto['records_per_second']:,.0f} against {chosen['records_per_second']:,.0f} records/s"
            yield (
                f"{auto['kind'].capitalize()} with no rate given comes to {scores[0]}, with η = "
                f"{chosen['learning_rate']:g} to {scores[1]}; {speeds}, without a grid to be tried before."
            )


def _best(grid: list[dict[str, Any]], metric: str) -> float:
    scored = [entry for entry in grid if entry["score"] is not None]
    if not scored:
        raise SettingError(
            got="a grid of rates that all diverge", wanted="one that learns", do="add lower ones: --rates"
        )
    pick = max if metric == "accuracy" else min
    return float(pick(scored, key=lambda entry: entry["score"])["learning_rate"])


def _times_to_target(strategies: dict[str, dict[str, Any]], metric: str, target: float | None) -> float | None:
    """Seconds until each arm's curve reaches a score: the one asked for, or the one that every tuned arm reaches."""
    key, sign = f"test_{metric}", 1 if metric == "accuracy" else -1
    tuned = [arm for name, arm in strategies.items() if name.endswith("_tuned")] or list(strategies.values())
    scored = {id(arm): [point for point in arm["curve"] if point.get(key) is not None] for arm in strategies.values()}
    reached = [max(sign * point[key] for point in scored[id(arm)]) for arm in tuned if scored[id(arm)]]
    goal = target if target is not None else (sign * min(reached) if reached else None)
    for arm in strategies.values():
        times = [p["seconds"] for p in scored[id(arm)] if goal is not None and sign * p[key] >= sign * goal]
        arm["time_to_target"] = times[0] if times else None
    return goal


def _notes(model: str, plan: Plan) -> list[str]:
    notes = list(plan.notes)
    if len(plan.seeds) > 1:
        notes.append("A curve is that of the run with the median score; the figures are means over the seeds.")
    if model == "reference":
        notes.append(
            "The reference network has a ReLU on its logits. A logit that falls below zero for every record gets no "
            "gradient any more, so its class is lost for good: which classes die is decided by the initial weights, "
            "and the accuracy is a lottery over seeds (about 72 to 91 % on MNIST). 'linear' is the same network "
            "without that ReLU."
        )
    return notes
