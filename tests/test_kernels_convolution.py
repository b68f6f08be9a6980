"""Convolution and pooling of one record equal torch's. Run: pytest tests/test_kernels_convolution.py"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from millstream.engines.kernels import convolution, pooling
from millstream.engines.kernels.convolution import CHANNELS, FILTERS, GROUPS, HEIGHT, WIDTH
from millstream.engines.kernels.layout import ADDS, OVERWRITES, UNWANTED

Array = npt.NDArray[Any]
MARGIN = 64
UNTOUCHED = 12345.0


def geometry_of(
    channels: int,
    plane: tuple[int, int],
    filters: int,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> npt.NDArray[np.int64]:
    out = [(plane[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(len(plane))]
    return np.array([channels, *plane, filters, *kernel, *stride, *padding, *dilation, groups, *out], np.int64)


@st.composite
def geometries(draw: Any, *, pools: bool = False) -> npt.NDArray[np.int64]:
    """Planes up to 20 × 40 and lines; what is under a kernel fits into the padded plane."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 9))
    is_line = draw(st.booleans())
    kernel = (1 if is_line else draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    stride = (1 if is_line else draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (1 if is_line else draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    most = [side // 2 for side in kernel] if pools else [4, 4]
    padding = (0 if is_line else draw(st.integers(0, most[0])), draw(st.integers(0, most[1])))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    plane = (
        1 if is_line else draw(st.integers(least[0], max(20, least[0]))),
        draw(st.integers(least[1], max(40, least[1]))),
    )
    if pools:
        groups, filters = 1, channels
    return geometry_of(
        channels, plane, filters, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )


class Guarded:
    """Arrays inside of larger ones, whose margins must stay as they are."""

    def __init__(self) -> None:
        self._all: list[Array] = []

    def room(self, num: int, dtype: Any, fill: float = np.nan) -> Array:
        whole = np.full(num + 2 * MARGIN, UNTOUCHED, dtype)
        whole[MARGIN : MARGIN + num] = fill
        self._all.append(whole)
        return whole[MARGIN : MARGIN + num]

    def check(self) -> None:
        for whole in self._all:
            assert (whole[:MARGIN] == UNTOUCHED).all()
            assert (whole[-MARGIN:] == UNTOUCHED).all()


def convolved(geometry: Array, dtype: Any, *, has_bias: bool, how: int, seed: int = 0) -> tuple[list[Array], list[Any]]:
    """Outputs and gradients of the kernel, and of torch in float64; gradients are added to 1."""
    rng, guarded = np.random.default_rng(seed), Guarded()
    channels, height, width, filters, *kernel = geometry[:6].tolist()
    shape = (filters, channels // int(geometry[GROUPS]), *kernel)
    inputs, weights = rng.normal(size=channels * height * width), rng.normal(size=int(np.prod(shape)))
    bias, delta = rng.normal(size=filters if has_bias else 0), rng.normal(size=filters * int(np.prod(geometry[-2:])))
    given_ = [array.astype(dtype) for array in (inputs, weights, bias, delta)]
    columns = guarded.room(convolution.num_columns(geometry), dtype)
    scratch = guarded.room(convolution.num_scratch(geometry), dtype)
    outputs = guarded.room(len(delta), dtype)
    gradient, bias_gradient = guarded.room(len(weights), dtype, 1.0), guarded.room(len(bias), dtype, 1.0)
    slope = guarded.room(len(inputs), dtype, np.nan if how == OVERWRITES else 1.0)
    convolution.convolve(*given_[:3], geometry, columns, outputs)
    convolution.convolve_back(
        given_[3], given_[1], geometry, columns, scratch, gradient, bias_gradient, slope, np.int64(how)
    )
    guarded.check()
    x = torch.tensor(given_[0], dtype=torch.float64).view(channels, height, width).requires_grad_()
    w = torch.tensor(given_[1], dtype=torch.float64).view(shape).requires_grad_()
    b = torch.tensor(given_[2], dtype=torch.float64).requires_grad_() if has_bias else None
    y = torch_convolution(x, w, b, geometry)
    y.backward(torch.tensor(given_[3], dtype=torch.float64).view(y.shape))
    assert x.grad is not None and w.grad is not None
    none = np.zeros(0)
    wanted = [y, w.grad + 1, none if b is None or b.grad is None else b.grad + 1]
    wanted.append(torch.ones_like(x) if how == UNWANTED else x.grad + (how == ADDS))
    return [outputs, gradient, bias_gradient, slope], wanted


def torch_convolution(x: Tensor, w: Tensor, b: Tensor | None, geometry: Array) -> Tensor:
    numbers = geometry.tolist()
    stride, padding, dilation = numbers[6:8], numbers[8:10], numbers[10:12]
    if numbers[HEIGHT] == numbers[4] == 1 and padding[0] == 0:  # a line
        line = functional.conv1d(x[:, 0], w[:, :, 0], b, stride[1], padding[1], dilation[1], numbers[GROUPS])
        return line[:, None]
    return functional.conv2d(x, w, b, stride, padding, dilation, numbers[GROUPS])


def check(found: list[Array], wanted: list[Any], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        right = other.detach().numpy().ravel() if isinstance(other, Tensor) else other
        np.testing.assert_allclose(one, right, rtol=tolerance, atol=tolerance)


@settings(max_examples=150, deadline=None)
@given(geometries(), st.booleans(), st.sampled_from([UNWANTED, OVERWRITES, ADDS]), st.integers(0, 99))
def test_convolution_equals_torch(geometry: Array, has_bias: bool, how: int, seed: int) -> None:
    check(*convolved(geometry, np.float64, has_bias=has_bias, how=how, seed=seed), 1e-10)


@settings(max_examples=30, deadline=None)
@given(geometries(), st.integers(0, 99))
def test_convolution_in_float32_equals_float64_to_rounding(geometry: Array, seed: int) -> None:
    check(*convolved(geometry, np.float32, has_bias=True, how=OVERWRITES, seed=seed), 1e-3)


@pytest.mark.parametrize(
    "geometry",
    [
        geometry_of(1, (28, 28), 6, (5, 5), padding=(2, 2)),
        geometry_of(6, (14, 14), 16, (5, 5)),
        geometry_of(16, (5, 5), 120, (5, 5)),  # one position
        geometry_of(40, (6, 50), 33, (1, 1)),
        geometry_of(32, (9, 9), 32, (3, 3), padding=(1, 1), groups=32),
        geometry_of(3, (70, 70), 7, (3, 3), stride=(2, 2), padding=(1, 1)),
        geometry_of(4, (1, 300), 9, (1, 7), padding=(0, 60), dilation=(1, 20)),
        geometry_of(2, (1, 1), 3, (1, 3), padding=(0, 40), dilation=(1, 40)),
    ],
    ids=str,
)
def test_convolutions_of_the_usual_sizes_equal_torch(geometry: Array) -> None:
    check(*convolved(geometry, np.float64, has_bias=True, how=ADDS), 1e-10)


def test_a_frozen_weight_has_no_gradient() -> None:
    geometry, none = geometry_of(1, (4, 4), 1, (3, 3)), np.zeros(0)
    columns, scratch = np.zeros(convolution.num_columns(geometry)), np.zeros(convolution.num_scratch(geometry))
    weights, slope = np.arange(9.0), np.zeros(16)
    convolution.convolve(np.ones(16), weights, none, geometry, columns, np.zeros(4))
    convolution.convolve_back(
        np.array([1.0, 0, 0, 0]), weights, geometry, columns, scratch, none, none, slope, np.int64(OVERWRITES)
    )
    assert slope.reshape(4, 4)[:3, :3].ravel().tolist() == weights.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_windows(bad: float) -> None:
    geometry = geometry_of(1, (6, 6), 1, (3, 3))
    inputs, outputs = np.ones(36), np.zeros(16)
    inputs[0] = bad
    columns = np.zeros(convolution.num_columns(geometry))
    convolution.convolve(inputs, np.ones(9), np.zeros(0), geometry, columns, outputs)
    assert np.isfinite(outputs).tolist() == [False] + [True] * 15
    scratch, gradient, slope = np.zeros(convolution.num_scratch(geometry)), np.zeros(9), np.zeros(36)
    none = np.zeros(0)
    convolution.convolve_back(
        np.ones(16), np.ones(9), geometry, columns, scratch, gradient, none, slope, np.int64(OVERWRITES)
    )
    assert np.isfinite(gradient).tolist() == [False] + [True] * 8
    assert np.isfinite(slope).all()


def torch_plane(array: Array, geometry: Array) -> Tensor:
    shape = [int(geometry[place]) for place in (CHANNELS, HEIGHT, WIDTH)]
    return torch.tensor(array, dtype=torch.float64).view(1, *shape).requires_grad_()


def pooled_slope(back: Any, delta: Array, adds: bool, num: int) -> Array:
    guarded = Guarded()
    slope = guarded.room(num, delta.dtype, 1.0 if adds else np.nan)
    back(delta, slope)
    guarded.check()
    return slope - adds


@settings(max_examples=100, deadline=None)
@given(geometries(pools=True), st.booleans(), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 99))
def test_max_pool_equals_torch_with_ties_and_nan(geometry: Array, adds: bool, share: float, seed: int) -> None:
    rng, numbers = np.random.default_rng(seed), geometry.tolist()
    window = (numbers[4:6], numbers[6:8], numbers[8:10], numbers[10:12])
    assume(functional.max_pool2d(torch.zeros(1, *numbers[:3]), *window).isfinite().all())  # no window is all padding
    inputs = rng.integers(-2, 3, int(np.prod(geometry[:3]))).astype(np.float64)
    inputs[rng.random(len(inputs)) < share] = rng.choice([np.nan, -np.inf])
    num = numbers[FILTERS] * int(np.prod(geometry[-2:]))
    outputs, winners = np.empty(num), np.empty(num, np.int64)
    pooling.max_pool(inputs, geometry, winners, outputs)
    x = torch_plane(inputs, geometry)
    y, places = functional.max_pool2d(x, *window, return_indices=True)
    np.testing.assert_array_equal(outputs, y.detach().numpy().ravel())
    first = torch.arange(numbers[CHANNELS])[:, None] * (numbers[HEIGHT] * numbers[WIDTH])
    np.testing.assert_array_equal(winners, (places[0].flatten(1) + first).flatten().numpy())
    delta = rng.normal(size=num)
    y.backward(torch.tensor(delta).view(y.shape))
    slope = pooled_slope(lambda d, s: pooling.max_pool_back(d, geometry, winners, s, adds), delta, adds, len(inputs))
    assert x.grad is not None
    np.testing.assert_allclose(slope, x.grad.numpy().ravel(), rtol=0, atol=1e-10)


def test_a_window_that_is_all_padding_has_no_winner() -> None:
    geometry = geometry_of(1, (1, 2), 1, (1, 2), padding=(0, 1), dilation=(1, 3))
    outputs, winners = np.zeros(1), np.zeros(1, np.int64)
    pooling.max_pool(np.ones(2), geometry, winners, outputs)
    assert outputs.tolist() == [-np.inf] and winners.tolist() == [-1]
    slope = pooled_slope(lambda d, s: pooling.max_pool_back(d, geometry, winners, s, False), np.ones(1), False, 2)
    assert slope.tolist() == [0, 0]


def test_max_pool_2_by_2_equals_torch() -> None:
    """The windows that have a loop of their own, with all places of NaN."""
    geometry = geometry_of(1, (3, 2 * 256 + 1), 1, (2, 2), stride=(2, 2))
    values = np.array(np.meshgrid(*[[1.0, 2.0, -np.inf, np.nan]] * 4)).reshape(4, -1)
    inputs = np.zeros((3, int(geometry[WIDTH])))
    inputs[0, 0 : 2 * values.shape[1] : 2], inputs[0, 1 : 2 * values.shape[1] : 2] = values[0], values[1]
    inputs[1, 0 : 2 * values.shape[1] : 2], inputs[1, 1 : 2 * values.shape[1] : 2] = values[2], values[3]
    num = int(geometry[-1])
    outputs, winners = np.zeros(num), np.zeros(num, np.int64)
    pooling.max_pool(inputs.ravel(), geometry, winners, outputs)
    wanted, places = functional.max_pool2d(torch.tensor(inputs)[None], 2, return_indices=True)
    np.testing.assert_array_equal(outputs, wanted.numpy().ravel())
    np.testing.assert_array_equal(winners, places.numpy().ravel())


@settings(max_examples=100, deadline=None)
@given(geometries(pools=True), st.booleans(), st.booleans(), st.integers(0, 99))
def test_average_pool_equals_torch(geometry: Array, counts_padding: bool, adds: bool, seed: int) -> None:
    numbers = geometry.tolist()
    kernel, stride, padding = numbers[4:6], numbers[6:8], numbers[8:10]
    geometry = geometry_of(
        numbers[0], tuple(numbers[1:3]), numbers[0], tuple(kernel), stride=tuple(stride), padding=tuple(padding)
    )
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=int(np.prod(geometry[:3])))
    outputs = np.empty(numbers[0] * int(np.prod(geometry[-2:])))
    pooling.average_pool(inputs, geometry, counts_padding, outputs)
    x = torch_plane(inputs, geometry)
    y = functional.avg_pool2d(x, kernel, stride, padding, count_include_pad=counts_padding)
    delta = rng.normal(size=len(outputs))
    y.backward(torch.tensor(delta).view(y.shape))
    slope = pooled_slope(
        lambda d, s: pooling.average_pool_back(d, geometry, counts_padding, s, adds), delta, adds, len(inputs)
    )
    assert x.grad is not None
    check([outputs, slope], [y, x.grad], 1e-10)
