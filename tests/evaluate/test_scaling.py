"""The scaling-law fit against finite differences, SciPy, simulated laws, brute force and the published refit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from almanac.core.errors import ShapeError
from almanac.evaluate.scaling import Law, bootstrap, fit, intervals, laws, objective, rejection
from almanac.evaluate.scaling_descent import Descent, minimise
from almanac.evaluate.scaling_law import Points

LAWS = [
    Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
    Law(E=0.6, A=30.0, B=9000.0, alpha=0.22, beta=0.5),
]
CHINCHILLA = Path("../shared/data/scaling/chinchilla_epoch.csv")


def simulated(law: Law, *, noise: float = 0.0, count: int = 60, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    parameters, tokens = 10 ** rng.uniform(7, 10, count), 10 ** rng.uniform(8, 11, count)
    exact = np.array([law.loss(n, d) for n, d in zip(parameters, tokens, strict=True)])
    return Points(parameters, tokens, exact * np.exp(noise * rng.standard_normal(count)))


@pytest.mark.parametrize("law", LAWS)
def test_simulated_laws_are_recovered(law: Law) -> None:
    assert fit(simulated(law)).values() == pytest.approx(law.values(), rel=1e-3)


def test_the_gradient_is_that_of_the_loss() -> None:
    points = simulated(LAWS[0], noise=0.003)
    weights = np.random.default_rng(1).integers(0, 3, len(points.losses)).astype(float)
    function = objective(points, weights)
    theta = LAWS[0].theta()[None] + 1e-3
    gradient = function(theta)[1][0]
    for place in range(5):
        nudge = np.zeros(5)
        nudge[place] = 1e-7
        slope = (function(theta + nudge)[0] - function(theta - nudge)[0]) / 2e-7
        assert gradient[place] == pytest.approx(slope[0], rel=1e-3, abs=1e-3)


def test_the_loss_is_the_huber_loss_of_log_residuals() -> None:
    points, law, delta = simulated(LAWS[1], noise=0.002), LAWS[1], 1e-3
    expected = 0.0
    for n, d, loss in zip(points.parameters, points.tokens, points.losses, strict=True):
        residual = abs(np.log(law.loss(n, d)) - np.log(loss))
        expected += residual**2 / 2 if residual <= delta else delta * (residual - delta / 2)
    assert objective(points)(law.theta()[None])[0][0] * delta == pytest.approx(expected, rel=1e-9)


def test_no_worse_than_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy, the other optimiser, is not installed")
    points = simulated(LAWS[1], noise=0.01)
    function = objective(points)
    ours = function(fit(points).theta()[None])[0][0]
    rng = np.random.default_rng(0)
    for _ in range(3):
        start = LAWS[1].theta() + 0.2 * rng.standard_normal(5)
        found = optimize.minimize(
            lambda theta: tuple(item[0] for item in function(theta[None])), start, jac=True, method="BFGS"
        )
        assert ours <= found.fun * (1 + 1e-4)


def test_a_weight_is_a_repetition() -> None:
    points = simulated(LAWS[1], noise=0.01, count=30)
    weights = np.ones(30)
    weights[[3, 7]] = (3, 0)
    picked = [*(i for i in range(30) if i != 7), 3, 3]
    repeated = Points(points.parameters[picked], points.tokens[picked], points.losses[picked])
    start = LAWS[1].theta()[None]
    weighted, plain = objective(points, weights)(start), objective(repeated)(start)
    np.testing.assert_allclose(weighted[0], plain[0])
    np.testing.assert_allclose(weighted[1], plain[1])
    found = minimise(objective(points, weights), start, Descent())[1][0]
    assert found == pytest.approx(objective(repeated)(fit(repeated).theta()[None])[0][0], rel=1e-4)


def test_one_wild_run_hardly_moves_the_law() -> None:
    points = simulated(LAWS[1], noise=0.002)
    calm = fit(points)
    wild = points.losses.copy()
    wild[5] *= 2
    moved = fit(Points(points.parameters, points.tokens, wild))
    assert abs(moved.E - calm.E) < 0.02
    assert abs(moved.alpha - calm.alpha) < 0.02


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("flops", [1e18, 1e24])
def test_the_best_split_is_the_best_of_many(law: Law, flops: float) -> None:
    parameters, tokens = law.optimal(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    best = min(law.loss(n, flops / 6 / n) for n in parameters * np.logspace(-1, 1, 4001))
    assert law.loss(parameters, tokens) == pytest.approx(best, rel=1e-9)


def test_the_bootstrap_covers_the_truth_and_rejects_another_law() -> None:
    points = simulated(LAWS[1], noise=0.01, count=120)
    law = fit(points)
    thetas = bootstrap(points, law, resamples=60, seed=3)
    assert np.array_equal(thetas, bootstrap(points, law, resamples=60, seed=3))
    inside = intervals(thetas, level=0.99)
    for name, value in zip(("E", "A", "B", "alpha", "beta"), LAWS[1].values(), strict=True):
        assert inside[name][0] <= value <= inside[name][1], name
    assert laws(thetas).std(axis=0).min() > 0
    assert rejection(thetas, law, LAWS[1]) < 20.5 < rejection(thetas, law, LAWS[0])
    assert rejection(thetas, law, law) == 0


def test_bad_points_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least 6"):
        fit(Points.of([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5))
    with pytest.raises(ShapeError):
        Points.of([1.0] * 7, [1.0] * 6, [1.0] * 7)
    with pytest.raises(ShapeError, match="positive"):
        Points.of([1.0] * 6, [1.0] * 6, [1.0, 2.0, float("nan"), 1.0, 1.0, 1.0])


def test_chinchilla_points_give_the_published_refit() -> None:
    if not CHINCHILLA.is_file():
        pytest.skip("the digitised points are not beside this repository")
    from almanac.evidence.evaluate.scaling import REFIT, distance, points

    found, _ = points()
    assert len(found.losses) == 240
    law = fit(found, Descent(starts=16))
    assert distance(law) < 0.1
    assert distance(REFIT) == 0
