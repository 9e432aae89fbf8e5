import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from nnfx import uncertainty
from tests.uncertainty.made import BINARY, LOGITS, SINGLE, P, f32, ints, masked

pytestmark = pytest.mark.usefixtures("strict_dtypes")

MEMBERS = scipy.special.softmax(np.random.default_rng(1).normal(size=(5, 7, 3)), -1)


def test_probabilities_of_classes_and_of_a_single_output():
    np.testing.assert_allclose(uncertainty.probabilities(f32(LOGITS)), P, rtol=1e-5)
    two = np.stack([scipy.special.expit(-SINGLE), scipy.special.expit(SINGLE)], 1)
    for logits in (f32(SINGLE), f32(SINGLE)[:, None]):
        np.testing.assert_allclose(uncertainty.probabilities(logits), two, rtol=1e-5)
    members = f32(SINGLE).reshape(4, 50, 1)
    np.testing.assert_allclose(uncertainty.probabilities(members), two.reshape(4, 50, 2), rtol=1e-5)


def test_probabilities_of_large_logits_keep_their_small_side():
    np.testing.assert_allclose(uncertainty.probabilities(f32([80.0]))[0, 0], np.exp(-80.0), rtol=1e-5)


def test_spread_against_numpy_and_scipy():
    ours = uncertainty.spread(f32(MEMBERS))
    np.testing.assert_allclose(ours.mean, MEMBERS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ours.std, MEMBERS.std(0), rtol=1e-4)
    np.testing.assert_allclose(ours.entropy, scipy.stats.entropy(MEMBERS.mean(0), axis=-1), rtol=1e-5)
    divergence = scipy.stats.entropy(MEMBERS, MEMBERS.mean(0)[None], axis=-1).mean(0)  # an equivalent form
    np.testing.assert_allclose(ours.mutual_information, divergence, rtol=1e-4)


def test_members_that_agree_have_no_spread_and_finite_gradients():
    same = f32([[[0.0, 1.0], [0.3, 0.7]]] * 3)
    ours = uncertainty.spread(same)
    np.testing.assert_allclose(ours.std, 0, atol=1e-6)
    np.testing.assert_allclose(ours.mutual_information, 0, atol=1e-6)
    assert (ours.mutual_information >= 0).all()
    single = f32([[[0.0, 1.0], [0.25, 0.75]]])
    for field in range(4):
        gradient = jax.jit(jax.grad(lambda p, field=field: uncertainty.spread(p)[field].sum()))(single)
        assert jnp.isfinite(gradient).all()


def test_low_precision_softmax_passes_the_check():
    p = uncertainty.probabilities(jnp.asarray(np.random.default_rng(1).normal(size=(50, 100)), jnp.bfloat16))
    assert jnp.isfinite(uncertainty.brier_score(p, ints(np.arange(50)))).all()


def test_classes_ruled_out_have_no_probability():
    p = uncertainty.probabilities(f32(masked(LOGITS)))
    np.testing.assert_allclose(p, scipy.special.softmax(masked(LOGITS), 1), rtol=1e-5)
    assert (p[:, 1] == 0).all()
    np.testing.assert_array_equal(uncertainty.probabilities(f32([-np.inf, np.inf])), [[1, 0], [0, 1]])


def test_wrong_logits_and_probabilities_are_named():
    labels = ints(BINARY[:3])
    with pytest.raises(ValueError, match=r"^logits: expected a batch"):
        uncertainty.probabilities(f32(1.0))
    with pytest.raises(TypeError, match=r"^logits: expected an array of floating"):
        uncertainty.probabilities(labels)
    with pytest.raises(TypeError, match=r"^probabilities: expected an array of floating"):
        uncertainty.spread(labels)
    with pytest.raises(ValueError, match=r"^probabilities: expected \(members, batch, classes\)"):
        uncertainty.spread(f32(P))
