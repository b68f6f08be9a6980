"""Run: pytest tests/test_metrics.py"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from millstream.errors import CheckpointError, DataError, ModelError, SettingError
from millstream.metrics import Metrics, exact
from millstream.metrics.baselines import MajorityBaseline

TASKS = [("classes", 2), ("classes", 3), ("classes", 10), ("classes", 30), ("binary", 1), ("number", 1), ("number", 3)]


def stream(task: str, num_outputs: int, size: int, seed: int = 0, spread: float = 1.0, bad: float = 0.0):
    """Outputs that know something of the targets, targets and losses; a share ``bad`` of them not finite."""
    rng = np.random.default_rng(seed)
    if task == "classes":
        outputs = rng.normal(size=(size, num_outputs)) * spread
        targets = (outputs + rng.gumbel(size=outputs.shape)).argmax(1)
    elif task == "binary":
        outputs = rng.normal(size=size) * spread
        targets = (outputs + rng.logistic(size=size) > 0).astype(np.int64)
    else:
        targets = np.cumsum(rng.normal(size=(size, num_outputs)), axis=0).astype(np.float32)
        outputs = targets + rng.normal(size=targets.shape)
    losses = rng.exponential(size=size)
    losses[rng.random(size) < bad] = np.nan
    outputs[rng.random(size) < bad] = np.inf
    return torch.tensor(outputs, dtype=torch.float32), torch.tensor(targets), torch.tensor(losses, dtype=torch.float32)


def measured(task: str, num_outputs: int, pieces, known=None, **settings) -> Metrics:
    metrics = Metrics(task, num_outputs, **settings)
    metrics.update(*pieces, known)
    return metrics


def flat(state: dict, prefix: str = "") -> dict[str, bytes]:
    """Every leaf of a state as bytes, so that NaNs and signs of zeros count."""
    leaves = {}
    for name, value in state.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
    return leaves


# Exact measures against scikit-learn ---------------------------------------------------------------------------------

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@settings(max_examples=30, deadline=None)
@given(LABELS)
def test_confusion_measures_equal_scikit_learn(pairs):
    targets, predicted = np.array(pairs).T
    confusion = exact.confusion_matrix(targets, predicted, 5)
    assert (confusion == sk.confusion_matrix(targets, predicted, labels=range(5))).all()
    assert exact.accuracy(confusion) == pytest.approx(sk.accuracy_score(targets, predicted))
    assert exact.macro_f1(confusion) == pytest.approx(sk.f1_score(targets, predicted, average="macro", zero_division=0))
    recalls = [np.mean(predicted[targets == k] == k) for k in np.unique(targets)]
    assert exact.balanced_accuracy(confusion) == pytest.approx(np.mean(recalls))
    if set(predicted) <= set(targets) and len(set(targets)) > 1:  # scikit-learn warns else, and says the same
        assert exact.balanced_accuracy(confusion) == pytest.approx(sk.balanced_accuracy_score(targets, predicted))
    if len(set(targets) | set(predicted)) > 1:
        assert exact.cohen_kappa(confusion) == pytest.approx(sk.cohen_kappa_score(targets, predicted), abs=1e-12)
    else:
        assert exact.cohen_kappa(confusion) is None
    counted = exact.Margins.count(targets, predicted, 5)
    assert all(
        (getattr(counted, name) == getattr(exact.Margins.of(confusion), name)).all() for name in counted.__slots__
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 3.0]) | st.floats(-5, 5), st.booleans()), min_size=1))
def test_rank_measures_equal_scikit_learn_with_ties(pairs):
    scores, labels = np.array([score for score, _ in pairs]), np.array([label for _, label in pairs])
    if labels.all() or not labels.any():
        assert exact.roc_auc(scores, labels) is None
        assert exact.average_precision(scores, labels) == (pytest.approx(1.0) if labels.all() else None)
    else:
        assert exact.roc_auc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores))
        assert exact.average_precision(scores, labels) == pytest.approx(sk.average_precision_score(labels, scores))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=50), st.floats(0, 1))
def test_measures_of_numbers_equal_scikit_learn(pairs, quantile):
    targets, predicted = np.round(np.array(pairs), 3).T
    pinball = exact.pinball(targets - predicted, quantile).mean()
    assert pinball == pytest.approx(sk.mean_pinball_loss(targets, predicted, alpha=quantile), abs=1e-12)
    r2 = exact.r2((targets - predicted)[None], targets[None])
    assert (r2 is None) == bool((targets == targets[0]).all())
    if r2 is not None:
        assert r2 == pytest.approx(sk.r2_score(targets, predicted), rel=1e-6, abs=1e-6)


def test_calibration_error_equals_its_definition():
    rng = np.random.default_rng(1)
    top, correct = rng.random(500), rng.random(500) < 0.6
    top[:3] = 0.0, 1.0, 1 / 15
    wanted = 0.0
    for low in range(15):
        within = (top >= low / 15) & ((top < (low + 1) / 15) | (low == 14))
        if within.any():
            wanted += within.mean() * abs(top[within].mean() - correct[within].mean())
    assert exact.expected_calibration_error(top, correct) == pytest.approx(wanted)


# Reports against scikit-learn and slow twins -------------------------------------------------------------------------


def wanted_of_classes(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    probabilities = torch.softmax(torch.tensor(logits, dtype=torch.float64), 1).numpy()
    predicted, classes = probabilities.argmax(1), range(probabilities.shape[1])
    binary = len(classes) == 2
    log_loss = sk.log_loss(targets, probabilities, labels=classes)
    shares = np.bincount(targets) / len(targets)
    average = [sk.average_precision_score(targets == k, probabilities[:, k]) for k in ([1] if binary else classes)]
    return {
        "accuracy": sk.accuracy_score(targets, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(targets, predicted),
        "macro_f1": sk.f1_score(targets, predicted, average="macro"),
        "kappa": sk.cohen_kappa_score(targets, predicted),
        "log_loss": log_loss,
        "normalised_entropy": log_loss / -np.sum(shares[shares > 0] * np.log(shares[shares > 0])),
        "roc_auc": sk.roc_auc_score(targets, probabilities[:, 1] if binary else probabilities, multi_class="ovr"),
        "pr_auc": np.mean(average),
        "calibration": exact.expected_calibration_error(probabilities.max(1), predicted == targets),
    }


@pytest.mark.parametrize(("num_classes", "form"), [(2, "two logits"), (2, "one"), (2, "column"), (3, ""), (10, "")])
def test_report_of_classes_equals_scikit_learn(num_classes, form):
    logits, targets, losses = stream("classes", num_classes, 3000, spread=2.0)
    outputs, task = logits, "classes"
    if form in ("one", "column"):
        outputs, task = logits[:, 1] - logits[:, 0], "binary"
        outputs = outputs[:, None] if form == "column" else outputs
    metrics = measured(task, num_classes, (outputs, targets.double() if task == "binary" else targets, losses))
    report = metrics.report()
    since_start = wanted_of_classes(logits.numpy(), targets.numpy())
    window = wanted_of_classes(logits.numpy()[-1000:], targets.numpy()[-1000:])
    for name, value in since_start.items():
        assert report[name] == pytest.approx(value, abs=1e-3 if name.endswith("auc") else 2e-6), name
    for name, value in window.items():
        assert report[f"window_{name}"] == pytest.approx(value, abs=2e-6), name
    assert report["loss"] == pytest.approx(losses.double().mean().item())
    assert report["window_loss"] == pytest.approx(losses[-1000:].double().mean().item())
    assert (report["count"], report["window_count"], report["num_nonfinite"]) == (3000, 1000, 0)
    assert metrics.headline == ("accuracy", "no_change_accuracy")
    assert metrics.window_headline() == (report["window_accuracy"], report["window_no_change_accuracy"])


@pytest.mark.parametrize("base", [0.0, -4.0, 5.0])
@pytest.mark.parametrize("spread", [1.0, 3.0, 12.0])
def test_areas_since_the_start_are_within_a_thousandth(base, spread):
    rng = np.random.default_rng(3)
    log_odds = rng.normal(size=20_000) * spread + base
    labels = (rng.logistic(size=20_000) < log_odds).astype(int)
    report = measured("binary", 1, (torch.tensor(log_odds), torch.tensor(labels), torch.zeros(20_000))).report()
    assert report["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, log_odds), abs=1e-3)
    assert report["pr_auc"] == pytest.approx(sk.average_precision_score(labels, log_odds), abs=1e-3)


def test_many_classes_have_no_rank_measures_and_report_the_rest():
    outputs, targets, losses = stream("classes", 300, 2000, spread=3.0)
    report = measured("classes", 300, (outputs, targets, losses)).report()
    assert "roc_auc" not in report and "window_pr_auc" not in report
    assert report["log_loss"] == pytest.approx(torch.nn.functional.cross_entropy(outputs, targets).item(), abs=1e-5)
    assert report["accuracy"] == pytest.approx((outputs.argmax(1) == targets).double().mean().item())


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_report_of_numbers_equals_scikit_learn(num_outputs):
    outputs, targets, losses = stream("number", num_outputs, 2500)
    if num_outputs == 1:
        outputs, targets = outputs[:, 0], targets[:, 0]
    metrics = measured("number", num_outputs, (outputs, targets, losses), window=700, quantile=0.9)
    report = metrics.report()
    for prefix, rows in (("", slice(None)), ("window_", slice(-700, None))):
        true, predicted = targets.numpy()[rows].astype(float), outputs.numpy()[rows].astype(float)
        assert report[prefix + "mae"] == pytest.approx(sk.mean_absolute_error(true, predicted))
        assert report[prefix + "rmse"] == pytest.approx(sk.mean_squared_error(true, predicted) ** 0.5)
        assert report[prefix + "r2"] == pytest.approx(sk.r2_score(true, predicted), abs=1e-9)
        assert report[prefix + "pinball"] == pytest.approx(sk.mean_pinball_loss(true, predicted, alpha=0.9))
    changes = np.diff(targets.numpy().astype(float), axis=0)
    assert report["no_change_mae"] == pytest.approx(np.abs(changes).mean())
    assert report["no_change_rmse"] == pytest.approx(np.square(changes).mean() ** 0.5)
    assert report["window_no_change_mae"] == pytest.approx(np.abs(changes[-700:]).mean())
    true = targets.numpy().reshape(2500, -1).astype(float)
    means = np.stack([true[:i].mean(0) for i in range(1, 2500)])
    assert report["mean_mae"] == pytest.approx(np.abs(true[1:] - means).mean())
    assert metrics.window_headline() == (report["window_mae"], report["window_no_change_mae"])


def test_log_rates_are_scored_as_rates():
    counts = torch.tensor([1.0, 4.0, 2.0])
    report = measured("number", 1, (counts.log()[:, None], counts, torch.zeros(3)), log_rate=True).report()
    assert report["mae"] == pytest.approx(0, abs=1e-6)
    overflow = measured("number", 1, (torch.tensor([9e3]), torch.tensor([1.0]), torch.zeros(1)), log_rate=True)
    assert overflow.report() == {"count": 0, "num_nonfinite": 1}


def slow_majority(known: np.ndarray, num_classes: int) -> list[int]:
    counts, majority = [0] * num_classes, []
    for label in known.tolist():
        if label >= 0:
            counts[label] += 1
        majority.append(counts.index(max(counts)) if any(counts) else -1)
    return majority


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 40), st.integers(0, 2**32 - 1), st.lists(st.integers(1, 900), min_size=1, max_size=4), st.booleans()
)
def test_majority_equals_its_slow_twin(num_classes, seed, lengths, drifts):
    rng = np.random.default_rng(seed)
    known = rng.integers(-1, num_classes, sum(lengths))
    if drifts:  # the lead changes hands again and again
        known = np.minimum((np.arange(len(known)) // 70 + rng.integers(0, 2, len(known))) % num_classes, known + 2)
    baseline, edges = MajorityBaseline(num_classes), np.cumsum([0, *lengths])
    parts = [baseline.predict(known[first:last]) for first, last in pairwise(edges)]
    assert np.concatenate(parts).tolist() == slow_majority(known, num_classes)


def test_baselines_of_classes_count_the_unknown_as_wrong():
    outputs, targets, losses = stream("classes", 3, 400)
    report = measured("classes", 3, (outputs, targets, losses)).report()
    labels = targets.numpy()
    assert report["no_change_accuracy"] == pytest.approx((labels[1:] == labels[:-1]).sum() / 400)
    majority = np.array(slow_majority(np.concatenate([[-1], labels[:-1]]), 3))
    assert report["majority_accuracy"] == pytest.approx((majority == labels).mean())
    change, accuracy = report["no_change_accuracy"], report["accuracy"]
    assert report["kappa_temporal"] == pytest.approx((accuracy - change) / (1 - change))


# Late labels, cuts, saving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "num_outputs"), [("classes", 4), ("binary", 1), ("number", 1)])
def test_known_labels_are_what_the_baselines_see(task, num_outputs):
    outputs, targets, losses = stream(task, num_outputs, 500)
    labels = targets.numpy().reshape(-1).astype(float)
    before = np.concatenate([[np.nan], labels[:-1]])
    instant = measured(task, num_outputs, (outputs, targets, losses))
    told = measured(task, num_outputs, (outputs, targets, losses), before)
    assert told.report() == instant.report()
    late = np.concatenate([np.full(25, np.nan), labels[:-25]])
    report = measured(task, num_outputs, (outputs, targets, losses), late).report()
    if task == "number":
        assert report["no_change_mae"] == pytest.approx(np.abs(labels[25:] - labels[:-25]).mean())
    else:
        assert report["no_change_accuracy"] == pytest.approx((labels[25:] == labels[:-25]).sum() / 500)
        majority = np.array(slow_majority(np.nan_to_num(late, nan=-1).astype(int), 4))
        assert report["majority_accuracy"] == pytest.approx((majority == labels).mean())


@pytest.mark.parametrize(("task", "num_outputs"), [*TASKS, ("other", 1)])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), late=st.sampled_from(["never", "always", "sometimes"]))
def test_cuts_and_saving_never_matter(task, num_outputs, seed, late):
    rng = np.random.default_rng(seed)
    size = 9000
    pieces = stream(task, num_outputs, size, seed=seed, spread=float(rng.choice([0.1, 3.0, 30.0])), bad=0.01)
    latest = np.roll(pieces[1].numpy().astype(float), 7, axis=0)
    latest[:7] = np.nan
    told = np.full(size, late == "always")
    if late == "sometimes":
        told[900:5000] = True
    ends = np.cumsum(rng.choice([1, 1, 1, 2, 7, 63, 300, 1000], size)).tolist()
    edges = sorted({0, 900, 5000, size, *(end for end in ends if end < size)})

    def update(metrics: Metrics, first: int, last: int) -> None:
        known = latest[first:last] if told[first] else None
        metrics.update(*(piece[first:last] for piece in pieces), known)

    whole, cut = (Metrics(task, num_outputs, window=333) for _ in range(2))
    for first, last in pairwise([0, 900, 5000, size]):
        update(whole, first, last)
    for first, last in pairwise(edges):
        update(cut, first, last)
        action = rng.choice(["go on", "glance", "report", "save"], p=[0.6, 0.2, 0.05, 0.15])
        if action == "glance":
            cut.window_headline()
        elif action == "report":
            cut.report()
        elif action == "save":
            saved, cut = cut.state_dict(), Metrics(task, num_outputs, window=333)
            cut.load_state_dict(saved)
            for array in saved["measures"].values():  # what was loaded must have been copied
                if isinstance(array, np.ndarray):
                    array.fill(0)
    assert cut.report() == whole.report()
    assert flat(cut.state_dict()) == flat(whole.state_dict())


def test_one_known_value_says_nothing_of_three_labels():
    outputs, targets, losses = stream("number", 3, 50)
    assert "no_change_mae" in measured("number", 3, (outputs, targets, losses), targets.numpy()).report()
    assert "no_change_mae" not in measured("number", 3, (outputs, targets, losses), targets.numpy()[:, 0]).report()


def test_precisions_do_not_mix():
    outputs, targets, losses = stream("classes", 3, 600)
    alone, together = Metrics("classes", 3), Metrics("classes", 3)
    for k, kind in enumerate((torch.float32, torch.float64, torch.bfloat16, torch.float32)):
        rows = slice(150 * k, 150 * (k + 1))
        for metrics in (alone, together):
            metrics.update(outputs[rows].to(kind), targets[rows], losses[rows])
        alone.report()
    assert together.report() == alone.report()


def test_a_state_of_other_settings_is_refused():
    state = measured("classes", 3, stream("classes", 3, 50)).state_dict()
    for other in (Metrics("classes", 4), Metrics("classes", 3, window=10), Metrics("number", 3)):
        with pytest.raises(CheckpointError, match="resume with the settings"):
            other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="version 2"):
        Metrics("classes", 3).load_state_dict(state | {"version": 2})
    del state["measures"]["margins"]
    with pytest.raises(CheckpointError, match="'margins'"):
        Metrics("classes", 3).load_state_dict(state)


# What is not finite, empty or wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "num_outputs"), TASKS)
def test_what_is_not_finite_is_counted_and_left_out(task, num_outputs):
    outputs, targets, losses = stream(task, num_outputs, 300, bad=0.1)
    fine = losses.isfinite() & outputs.reshape(300, -1).isfinite().all(1)
    known = np.concatenate([[np.nan], targets.numpy().reshape(300, -1)[:-1, 0].astype(float)])
    if num_outputs == 3 and task == "number":
        known = np.concatenate([np.full((1, 3), np.nan), targets.numpy()[:-1].astype(float)])
    report = measured(task, num_outputs, (outputs, targets, losses)).report()
    assert report["num_nonfinite"] == 300 - int(fine.sum()) > 0
    assert all(np.isfinite(value) for value in report.values())
    without = measured(task, num_outputs, (outputs[fine], targets[fine], losses[fine]), known[fine.numpy()]).report()
    baselines = {"majority_accuracy", "mean_mae"}  # these also know the labels of the records left out
    for name, value in without.items():
        if name.removeprefix("window_") not in baselines | {"num_nonfinite"}:
            assert report[name] == pytest.approx(value, rel=1e-12), name


def test_extreme_logits_stay_finite():
    outputs = torch.tensor([[3e38, -3e38, 0.0], [-3e38, 3e38, 3e38], [1e3, -1e3, 0.0], [0.0, 0.0, 0.0]])
    report = measured("classes", 3, (outputs, torch.tensor([1, 2, 0, 0]), torch.zeros(4))).report()
    assert report["num_nonfinite"] == 0 and all(np.isfinite(value) for value in report.values())
    pair = measured("binary", 1, (torch.tensor([3e38, -3e38]), torch.tensor([0, 1]), torch.zeros(2))).report()
    assert pair["accuracy"] == 0 and np.isfinite(pair["log_loss"])


@pytest.mark.parametrize(("task", "num_outputs"), [*TASKS, ("other", 1)])
def test_an_empty_report_and_a_report_of_one_record(task, num_outputs):
    metrics = Metrics(task, num_outputs)
    assert metrics.report() == {"count": 0, "num_nonfinite": 0}
    assert metrics.window_headline() is None
    outputs, targets, losses = stream(task, num_outputs, 1)
    metrics.update(outputs[:0], targets[:0], losses[:0])
    metrics.update(outputs.requires_grad_(), targets, losses)
    report = metrics.report()
    assert report["count"] == 1 and metrics.headline[0] in report and "roc_auc" not in report
    assert all(np.isfinite(value) for value in report.values())


def test_mistakes_are_named():
    for wrong in ({"task": "clases"}, {"num_outputs": 0}, {"window": 0}, {"quantile": 2.0}):
        with pytest.raises(SettingError):
            Metrics(**({"task": "classes", "num_outputs": 2} | wrong))
    outputs, targets, losses = stream("classes", 3, 4)
    with pytest.raises(DataError, match="as many records"):
        Metrics("classes", 3).update(outputs[:3], targets, losses)
    with pytest.raises(DataError, match="2 known labels"):
        Metrics("classes", 3).update(outputs, targets, losses, np.zeros(2))
    with pytest.raises(ModelError, match="5 classes"):
        measured("classes", 5, (outputs, targets, losses)).report()
    with pytest.raises(DataError, match="class 3"):
        measured("classes", 3, (outputs, targets + 3 - targets, losses)).report()
    with pytest.raises(DataError, match=r"class 0\.5"):
        measured("binary", 1, (outputs[:, 0], torch.full((4,), 0.5), losses)).report()
    with pytest.raises(ModelError, match="2 for each record"):
        measured("number", 2, (outputs, targets, losses)).report()
