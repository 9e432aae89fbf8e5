"""What the tests of uncertainty share: made logits and labels, and short forms."""

import jax.numpy as jnp
import numpy as np
import scipy.special

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(200, 4)) * 3
LABELS = (LOGITS / 2 + RNG.gumbel(size=LOGITS.shape)).argmax(1)  # so that T = 2 is right
P = scipy.special.softmax(LOGITS, 1)
SINGLE = RNG.normal(size=200) * 3
BINARY = (RNG.uniform(size=200) < scipy.special.expit(SINGLE / 2)).astype(int)
MASK = np.arange(4) == 1
ALLOWED = LABELS != 1


def f32(values):
    return jnp.asarray(values, jnp.float32)


def ints(values):
    return jnp.asarray(values, jnp.int32)


def masked(logits):
    return np.where(MASK, -np.inf, logits)
