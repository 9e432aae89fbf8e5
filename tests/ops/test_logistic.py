import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_expit

from nnfx.ops import logistic_loss

LOGITS = np.concatenate([np.linspace(-85, 85, 3401), np.geomspace(1e-30, 1, 301), -np.geomspace(1e-30, 1, 301)])


def expected(logits, labels):
    return -labels * log_expit(logits) - (1 - labels) * log_expit(-logits)


@pytest.mark.parametrize("label", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_it_is_as_accurate_as_its_dtype(dtype, label):
    logits, labels = jnp.asarray(LOGITS, dtype), jnp.full(LOGITS.shape, label, dtype)
    found = jax.jit(logistic_loss)(logits, labels)
    assert found.dtype == dtype
    exact = expected(np.asarray(logits, np.float64), np.asarray(labels, np.float64))
    rounding = jnp.finfo(dtype)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), exact, rtol=6 * float(rounding.eps), atol=float(rounding.tiny)
    )


def test_in_float64_it_is_so_as_well():
    with jax.enable_x64(True):
        for label in (0.0, 0.5, 1.0):
            found = logistic_loss(jnp.asarray(LOGITS), jnp.full(LOGITS.shape, label))
            np.testing.assert_allclose(found, expected(LOGITS, label), rtol=1e-15)


@pytest.mark.parametrize("label", [0.0, 0.5, 1.0])
def test_gradients_do_not_cancel(label):
    logits, labels = jnp.asarray(LOGITS, jnp.float32), jnp.full(LOGITS.shape, label, jnp.float32)
    of_logits, of_labels = jax.grad(lambda *both: logistic_loss(*both).sum(), (0, 1))(logits, labels)
    z = np.asarray(logits, np.float64)
    smallest = 1e-37 if label in (0, 1) else 1e-7  # in between, the true slope is a difference
    np.testing.assert_allclose(of_logits, (1 - label) * expit(z) - label * expit(-z), rtol=1e-5, atol=smallest)
    np.testing.assert_array_equal(of_labels, -logits)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_curvature_at_zero_and_elsewhere(label):
    """At zero, where a model may start, `|z|` has a kink, and the loss has none."""
    for z in (0.0, -3.0, 2.0):
        curvature = jax.jacfwd(jax.grad(logistic_loss))(jnp.float32(z), jnp.float32(label))
        np.testing.assert_allclose(curvature, expit(z) * expit(-z), rtol=1e-5)
        assert jax.grad(jax.grad(logistic_loss))(jnp.float32(z), jnp.float32(label)) == pytest.approx(curvature)


def test_no_logarithm_is_taken_on_a_cpu():
    def program(dtype):
        return jax.jit(logistic_loss).lower(*[jax.ShapeDtypeStruct((8,), dtype)] * 2).as_text()

    assert "log_plus_one" not in program(jnp.float32)
    with jax.enable_x64(True):
        assert "log_plus_one" in program(jnp.float64), "for which the series is too short"


def test_under_vmap_it_is_a_loop():
    logits, labels = jnp.asarray(LOGITS[:12].reshape(3, 4), jnp.float32), jnp.ones((3, 4))
    together = jax.vmap(logistic_loss)(logits, labels)
    np.testing.assert_array_equal(together, [logistic_loss(*pair) for pair in zip(logits, labels, strict=True)])


def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"labels: expected the shape of the logits, \(3,\), got"):
        logistic_loss(jnp.zeros(3), jnp.zeros(1))
