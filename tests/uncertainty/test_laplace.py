import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import sklearn.linear_model

from nnfx import models, uncertainty
from nnfx.types import Batch
from nnfx.uncertainty import laplace

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=40)
NEW = RNG.normal(size=(5, 3))
NOISE, ALPHA = 0.3, 2.0
WEIGHTS = RNG.integers(0, 3, size=40)
LINEAR = models.perceptron()


def batch(inputs, targets, weights=None):
    weights = np.ones(len(inputs)) if weights is None else weights
    targets = jnp.asarray(targets, jnp.int32 if np.asarray(targets).dtype.kind == "i" else jnp.float32)
    return Batch(jnp.asarray(inputs, jnp.float32), targets, jnp.asarray(weights, jnp.float32))


def linear(kernel):
    kernel = jnp.asarray(kernel, jnp.float32).reshape(3, -1)
    return {"params": {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}}


def ridge():
    """The mean and the covariance of Bayesian linear regression, in float64."""
    covariance = np.linalg.inv(X.T @ X / NOISE**2 + ALPHA * np.eye(3))
    return covariance @ X.T @ Y / NOISE**2, covariance


def test_linear_regression_is_exact():
    mean, covariance = ridge()
    variables = linear(mean)
    posterior = laplace.fit(LINEAR, variables, batch(X, Y), noise=NOISE, prior_precision=ALPHA, layer="kernel")
    outputs = laplace.predict(LINEAR, variables, posterior, jnp.asarray(NEW, jnp.float32))
    np.testing.assert_allclose(outputs.mean[:, 0], NEW @ mean, rtol=1e-4)
    np.testing.assert_allclose(outputs.covariance[:, 0, 0], np.einsum("ni,ij,nj->n", NEW, covariance, NEW), rtol=1e-4)
    marginal = scipy.stats.multivariate_normal(np.zeros(40), X @ X.T / ALPHA + NOISE**2 * np.eye(40))
    assert posterior.log_evidence == pytest.approx(marginal.logpdf(Y), rel=1e-4)


def test_linear_regression_against_scikit_learn():
    theirs = sklearn.linear_model.BayesianRidge(fit_intercept=False, tol=1e-10, max_iter=1000).fit(X, Y)
    variables = linear(theirs.coef_)
    numbers = {"prior_precision": theirs.lambda_, "noise": theirs.alpha_**-0.5}
    posterior = laplace.fit(LINEAR, variables, batch(X, Y), **numbers, layer="kernel")
    outputs = laplace.predict(LINEAR, variables, posterior, jnp.asarray(NEW, jnp.float32))
    _, std = theirs.predict(NEW, return_std=True)
    np.testing.assert_allclose(outputs.covariance[:, 0, 0] + 1 / theirs.alpha_, std**2, rtol=1e-3)


def loss_of_classes(flat, x, labels, weights, features):
    """The negative log-likelihood in NumPy, by the layer's bias and kernel, in the order of their names."""
    classes = flat.size // (features + 1)
    logits = x @ flat[classes:].reshape(features, classes) + flat[:classes]
    logits = np.stack([0 * logits[:, 0], logits[:, 0]], 1) if classes == 1 else logits
    return -(weights * scipy.special.log_softmax(logits, 1)[np.arange(len(x)), labels]).sum()


def hessian(of, at, h=1e-3):
    steps = h * np.eye(at.size)
    return np.array(
        [
            [(of(at + a + b) - of(at + a - b) - of(at - a + b) + of(at - a - b)) / (4 * h * h) for b in steps]
            for a in steps
        ]
    )


@pytest.mark.parametrize("outputs", [1, 3])
def test_logistic_regression_has_the_hessian_of_its_loss(outputs):
    model = models.perceptron(outputs)
    labels = RNG.integers(0, max(outputs, 2), size=40)
    variables = {
        "params": {
            "bias": jnp.linspace(-0.5, 0.5, outputs),
            "kernel": jnp.sin(jnp.arange(3.0 * outputs)).reshape(3, -1),
        }
    }
    posterior = laplace.fit(model, variables, batch(X, labels, WEIGHTS), prior_precision=ALPHA, layer="*")
    flat = np.concatenate([np.ravel(variables["params"][name]) for name in ("bias", "kernel")]).astype(np.float64)
    by_differences = hessian(lambda flat: loss_of_classes(flat, X, labels, WEIGHTS, 3), flat)
    assert list(posterior.directions) == ["bias", "kernel"]
    vectors = np.concatenate([np.reshape(each, (flat.size, -1)) for each in posterior.directions.values()], 1)
    ours = vectors.T @ np.diag(posterior.curvature) @ vectors
    np.testing.assert_allclose(ours, by_differences, atol=1e-4)
    assert posterior.log_likelihood == pytest.approx(-loss_of_classes(flat, X, labels, WEIGHTS, 3), rel=1e-5)
    # the distribution of the outputs for new inputs, from the same matrix
    found = laplace.predict(model, variables, posterior, jnp.asarray(NEW, jnp.float32))
    covariance = np.linalg.inv(by_differences + ALPHA * np.eye(flat.size))
    jacobian = np.stack([np.concatenate([np.eye(outputs), np.kron(x, np.eye(outputs))], 1) for x in NEW])
    np.testing.assert_allclose(
        found.covariance, jacobian @ covariance @ jacobian.transpose(0, 2, 1), rtol=1e-3, atol=1e-5
    )


def test_rows_without_weight_do_not_count_and_weights_count_like_copies():
    labels, copies = (X[:, 0] > 0).astype(int), np.repeat(np.arange(40), WEIGHTS)
    variables, strange = linear([1.0, 0.0, 0.0]), np.where(WEIGHTS[:, None] == 0, np.nan, X)
    for targets, unknown, options in ((labels, -1, {}), (Y, np.nan, {"noise": NOISE})):
        given = batch(strange, np.where(WEIGHTS == 0, unknown, targets), WEIGHTS)
        weighted = laplace.fit(LINEAR, variables, given, prior_precision=ALPHA, layer="*", **options)
        whole = batch(X[copies], targets[copies])
        copied = laplace.fit(LINEAR, variables, whole, prior_precision=ALPHA, layer="*", **options)
        np.testing.assert_allclose(weighted.curvature, copied.curvature, rtol=1e-3, atol=1e-5)
        assert weighted.log_evidence == pytest.approx(float(copied.log_evidence), rel=1e-4)


def test_the_last_layer_of_a_network_is_a_linear_model_of_its_features(key):
    model = models.mlp((6,), 2, activation="tanh")
    targets = np.stack([Y, -Y], 1)
    data = batch(X, targets)
    variables = model.init(key, data.inputs)
    posterior = laplace.fit(model, variables, data, noise=NOISE, prior_precision=ALPHA)
    of = jax.tree.map(np.float64, dict(variables["params"]))
    features = np.tanh(np.concatenate([X, NEW]) @ of["hidden_0"]["kernel"] + of["hidden_0"]["bias"])
    features = np.concatenate([np.ones((45, 1)), features], 1)
    old, new = features[:40], features[40:]
    covariance = np.linalg.inv(old.T @ old / NOISE**2 + ALPHA * np.eye(7))
    expected = np.einsum("ni,ij,nj->n", new, covariance, new)[:, None, None] * np.eye(2)
    found = laplace.predict(model, variables, posterior, jnp.asarray(NEW, jnp.float32))
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.mean, model.apply(variables, jnp.asarray(NEW, jnp.float32)), rtol=1e-5)


def test_members_have_the_moments_of_the_outputs(key):
    labels, new = (X[:, 0] > 0).astype(int), jnp.asarray(NEW, jnp.float32)
    variables = linear([2.0, 0.0, 0.0])
    posterior = laplace.fit(LINEAR, variables, batch(X, labels), prior_precision=0.5, layer="*")
    drawn = np.asarray(laplace.members(key, LINEAR, variables, posterior, new, draws=4000))
    mean, covariance = laplace.predict(LINEAR, variables, posterior, new)
    deviation = np.sqrt(covariance[:, :, 0])
    assert drawn.shape == (4000, 5, 1)
    assert (np.abs(drawn.mean(0) - mean) < 4.5 * deviation / np.sqrt(4000)).all()
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=4.5 / np.sqrt(2 * 4000))
    # the probability of class 1 is the integral of the sigmoid
    averaged = uncertainty.spread(uncertainty.probabilities(jnp.asarray(drawn))).mean[:, 1]
    for p, m, s in zip(averaged, np.ravel(mean), np.ravel(deviation), strict=True):
        density = scipy.stats.norm(m, s).pdf
        integral = scipy.integrate.quad(lambda z, f=density: scipy.special.expit(z) * f(z), m - 9 * s, m + 9 * s)[0]
        assert p == pytest.approx(integral, abs=4.5 * 0.5 / np.sqrt(4000))


def test_numbers_are_traced(compilations):
    data, variables = batch(X, Y), linear([1.0, -2.0, 0.5])
    laplace.fit(LINEAR, variables, data, noise=0.1, prior_precision=1.0, layer="kernel")
    before = compilations()
    posterior = laplace.fit(LINEAR, variables, data, noise=0.2, prior_precision=3.0, layer="kernel")
    assert compilations() == before
    evidences = jax.vmap(lambda a: posterior._replace(prior_precision=a).log_evidence)(jnp.array([1.0, 3.0]))
    assert evidences[1] == pytest.approx(float(posterior.log_evidence), rel=1e-5)


def test_wrong_input_is_named(key):
    data, variables = batch(X, Y), linear([1.0, -2.0, 0.5])
    with pytest.raises(ValueError, match="layer: expected a pattern that matches one of bias, kernel, got 'output'"):
        laplace.fit(LINEAR, variables, data, prior_precision=1.0)
    for name in ("noise", "prior_precision"):
        with pytest.raises(ValueError, match=f"{name}: expected a finite number above 0, got 0"):
            laplace.fit(LINEAR, variables, data, **{"noise": 1.0, "prior_precision": 1.0, name: 0.0}, layer="*")
    with pytest.raises(ValueError, match="data.targets: expected whole numbers from 0 to 1, got"):
        laplace.fit(LINEAR, variables, data, prior_precision=1.0, layer="*")
    with pytest.raises(ValueError, match="labels: expected labels from 0 to 1, got labels from 2 to 2"):
        laplace.fit(LINEAR, variables, batch(X, np.full(40, 2)), prior_precision=1.0, layer="*")
    with pytest.raises(ValueError, match=r"targets: expected real numbers \[40,1\], got float32\[40,2\]"):
        laplace.fit(LINEAR, variables, batch(X, np.stack([Y, Y], 1)), prior_precision=1.0, noise=1.0, layer="*")
    with pytest.raises(ValueError, match="targets: expected finite numbers"):
        laplace.fit(LINEAR, variables, batch(X, np.where(Y > 0, Y, np.nan)), prior_precision=1.0, noise=1.0, layer="*")
    for weights in (-np.ones(40), np.zeros(40)):
        with pytest.raises(ValueError, match="data.weights: expected non-negative numbers, at least one of them posit"):
            laplace.fit(LINEAR, variables, batch(X, Y, weights), prior_precision=1.0, noise=1.0, layer="*")
    posterior = laplace.fit(LINEAR, variables, data, prior_precision=1.0, noise=1.0, layer="*")
    with pytest.raises(TypeError, match="key: expected a typed key"):
        laplace.members(0, LINEAR, variables, posterior, data.inputs, draws=3)
    with pytest.raises(ValueError, match="draws: expected a positive integer, got 0"):
        laplace.members(key, LINEAR, variables, posterior, data.inputs, draws=0)


def test_missing_targets_count_for_nothing():
    """Two outputs, of which some targets are missing, are two regressions on the rows that each has."""
    targets = np.stack([Y, 2 - Y], axis=1)
    present = RNG.random((40, 2)) < 0.7
    model = models.perceptron(outputs=2)
    kernel = np.stack([ridge()[0], -ridge()[0]], axis=1)
    given = batch(X, np.where(present, targets, 1e6), present)
    posterior = laplace.fit(model, linear(kernel), given, noise=NOISE, prior_precision=ALPHA, layer="kernel")
    found = laplace.predict(model, linear(kernel), posterior, jnp.asarray(NEW, jnp.float32)).covariance
    for output in range(2):
        rows = X[present[:, output]]
        covariance = np.linalg.inv(rows.T @ rows / NOISE**2 + ALPHA * np.eye(3))
        expected = np.einsum("ni,ij,nj->n", NEW, covariance, NEW)
        np.testing.assert_allclose(found[:, output, output], expected, rtol=1e-3)
        np.testing.assert_allclose(found[:, 0, 1], 0, atol=1e-6)


def test_the_precision_of_a_penalty_makes_the_trained_weights_the_most_likely():
    """At the minimum of the mean loss and l2, the gradient of the posterior is zero for the documented precision."""
    rows, outputs, penalty = 40, 2, 0.1
    targets = np.stack([Y, 2 - Y], axis=1)
    gram = 2 / (rows * outputs) * X.T @ X + penalty * np.eye(3)
    kernel = np.linalg.solve(gram, 2 / (rows * outputs) * X.T @ targets)  # minimises the mean square error and l2
    alpha = rows * outputs * penalty / (2 * NOISE**2)
    np.testing.assert_allclose(X.T @ (X @ kernel - targets) / NOISE**2 + alpha * kernel, 0, atol=1e-9)


def test_weights_of_single_targets_are_for_regression():
    with pytest.raises(ValueError, match=r"weights: expected one weight for each row, \[40\], got float32\[40,1\]"):
        laplace.fit(
            LINEAR,
            linear(np.ones(3)),
            batch(X, (Y > 0).astype(int), np.ones((40, 1))),
            prior_precision=1.0,
            layer="kernel",
        )


@pytest.mark.parametrize("classes", [2, 3])
def test_labels_may_be_whole_numbers_of_any_dtype(classes):
    labels = np.arange(40) % classes
    model = models.perceptron(1 if classes == 2 else classes)
    variables = model.init(jax.random.key(0), jnp.asarray(X, jnp.float32))
    expected = laplace.fit(model, variables, batch(X, labels), prior_precision=ALPHA, layer="kernel").log_evidence
    for dtype in (jnp.float32, jnp.float16, jnp.uint8):
        given = batch(X, labels)._replace(targets=jnp.asarray(labels, dtype))
        assert laplace.fit(model, variables, given, prior_precision=ALPHA, layer="kernel").log_evidence == expected
    for wrong in (0.5, -1.0, np.nan):
        with pytest.raises(ValueError, match="data.targets: expected "):
            laplace.fit(model, variables, batch(X, np.append(labels[1:], wrong)), prior_precision=ALPHA, layer="kernel")
