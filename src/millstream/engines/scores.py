"""How bad the answers of copies are: those whose labels are known, and those that wait for theirs.

Lower is better. What a copy is judged by is what it answered when it was asked, so scores (or, where nobody knows the
label, the outputs) are kept until the lesson comes. A copy that was not asked then is neither praised nor blamed.

Shapes: K copies, N records, M questions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from millstream.contracts import Chunk, Loss, Outcome, Questions, State
from millstream.engines.pieces import Pending, Unscored

__all__ = ["Scores", "wrong"]

_SHARE_OF_LOSS = 0.1  # of the score of a class; the rest is whether it was right
_MOST_LOSS, _MOST_MEANS = 5.0, 20.0  # more than these counts no more: nats of a class, times the mean of a number
_MOST_AT_FIRST = 1e12  # before that mean is known
_MOST_LATE = 256  # questions between one and its lesson, for labels to count as early


class Scores:
    """Scores of K copies by one loss.

    ``keep`` takes up what questions were answered with, ``known`` gives the scores of these answers once their lessons
    come, ``of`` those of answers to records that are lessons themselves.
    """

    def __init__(self, num_copies: int, loss: Loss) -> None:
        self._num_copies, self._loss = num_copies, loss
        self._pending, self._unscored = Pending(num_copies), Unscored()
        self._scale = 0.0  # of losses that are not of classes: the leader's mean
        self._newest = -1  # number of the last question
        self._num_early, self._num_late = 0, 0  # lessons of the segment so far, by how late they came

    @property
    def are_late(self) -> bool:
        """Whether most labels of the segment came so late that those of today say little about the world of today.

        Questions that nobody answers do not count: with labels that join by an id, there may be many.
        """
        return self._num_late > self._num_early

    def close(self, mean_of_leader: float) -> None:
        """A segment ends; losses of numbers are compared with the leader's mean from now on, if that is known."""
        self._scale = mean_of_leader or self._scale
        self._num_early = self._num_late = 0

    def forget(self, number: int) -> None:
        """A copy begins anew: what it has answered so far is not its any more."""
        self._pending.forget(number)

    def of(self, outcomes: dict[int, Outcome], targets: Tensor) -> npt.NDArray[np.float64]:
        """(K, N) how bad each answer was; NaN for copies that do not run."""
        scores = np.full((self._num_copies, len(targets)), np.nan)
        losses = {n: outcome.losses.double().cpu().numpy() for n, outcome in outcomes.items()}
        task = self._loss.task
        if task not in ("classes", "binary"):
            most = _MOST_MEANS * self._scale if self._scale else _MOST_AT_FIRST
            for number, value in losses.items():
                scores[number] = np.minimum(np.nan_to_num(value, nan=most, posinf=most), most)
            return scores
        for number, value in losses.items():
            is_wrong = wrong(outcomes[number].outputs, targets, task)
            capped = np.minimum(np.nan_to_num(value, nan=_MOST_LOSS, posinf=_MOST_LOSS), _MOST_LOSS)
            scores[number] = is_wrong + _SHARE_OF_LOSS * capped
        return scores

    def keep(self, asked: Questions, outcomes: dict[int, Outcome]) -> None:
        """The scores of questions, until their lessons come; the outputs of those whose labels nobody knows yet."""
        chunk = asked.chunk
        assert chunk.numbers is not None and chunk.targets is not None
        scores = self.of(outcomes, chunk.targets)
        if not asked.labelled:
            scores = self._unscored.kept(outcomes, np.isnan(scores))
        self._pending.drop_before(asked.oldest)
        self._pending.keep(chunk.numbers, scores)
        self._newest = int(chunk.numbers[-1])

    def count(self, lessons: Chunk, asked: Questions | None) -> None:
        """How late lessons come: after how many questions that were asked since theirs.

        ``asked`` are those that stand among the lessons, and are kept after this.
        """
        assert lessons.numbers is not None
        newest_N = np.full(len(lessons), self._newest)
        if asked is not None:
            assert asked.chunk.numbers is not None
            num_N = np.searchsorted(asked.learned_before, np.arange(len(lessons)), side="right")
            newest_N = np.where(num_N > 0, asked.chunk.numbers[num_N - 1], newest_N)
        is_new = lessons.numbers >= 0
        num_late = int((is_new & (newest_N - lessons.numbers > _MOST_LATE)).sum())
        self._num_late += num_late
        self._num_early += int(is_new.sum()) - num_late

    def known(self, lessons: Chunk, leader: int, usual: float) -> npt.NDArray[np.float64]:
        """(K, N) how bad was what these lessons were answered with when they were asked; never NaN.

        A copy that did not run then counts as the leader does, which it went on from. Where labels come in another
        order than their questions, the leader itself may not have run, or begun anew since: then as those that did, on
        average; and where all have begun anew, the answer says nothing of any: all count as the ``usual`` score.
        """
        assert lessons.numbers is not None and lessons.targets is not None
        found = self._pending.take(lessons.numbers)
        if len(found) > self._num_copies:
            targets = lessons.targets if lessons.judged is None else lessons.judged
            outputs = self._unscored.outputs(found, self._num_copies, targets.device)
            outcomes = {n: Outcome(each, self._loss(each, targets)) for n, each in enumerate(outputs)}
            found = np.where(np.isnan(found[: self._num_copies]), np.nan, self.of(outcomes, targets))
        is_unknown = np.isnan(found)
        if not is_unknown.any():
            return found
        num_N = (~is_unknown).sum(axis=0)
        means_N = np.where(is_unknown, 0.0, found).sum(axis=0) / np.maximum(num_N, 1)
        others_N = np.where(is_unknown[leader], np.where(num_N > 0, means_N, usual), found[leader])
        return np.where(is_unknown, others_N, found)

    def state_dict(self) -> State:
        return {
            "pending": self._pending.state_dict(),
            "unscored": self._unscored.state_dict(),
            "scale": self._scale,
            "late": {"newest": self._newest, "num_early": self._num_early, "num_late": self._num_late},
        }

    def load_state_dict(self, state: State) -> None:
        self._scale = state["scale"]
        self._pending.load_state_dict(state["pending"])
        self._unscored.load_state_dict(state.get("unscored", {}))
        late = state.get("late", {"newest": -1, "num_early": 0, "num_late": 0})
        self._newest, self._num_early, self._num_late = late["newest"], late["num_early"], late["num_late"]


def wrong(outputs: Tensor, targets: Tensor, task: str) -> npt.NDArray[np.float64]:
    """(N,) 1 where the class that was answered is not that of the label, else 0."""
    if task == "binary":
        right = (outputs.reshape(len(targets)) > 0) == (targets.reshape(len(targets)) > 0.5)
    else:
        wanted = targets if not targets.is_floating_point() else targets.argmax(-1)
        right = outputs.argmax(1) == wanted
        right = right.flatten(1).all(1) if right.ndim > 1 else right
    found: npt.NDArray[np.float64] = (~right).double().cpu().numpy()
    return found
