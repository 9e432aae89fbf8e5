import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import compatibility


def test_this_release_of_jaxlib_computes_what_the_affected_ones_get_wrong():
    rows = np.random.default_rng(0).normal(size=(40_000, 3)).astype(np.float32)
    ours = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    np.testing.assert_allclose(ours, (rows.astype(np.float64) ** 2).sum(1), rtol=1e-5)


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0", "0.11.2"])
def test_an_affected_release_is_named_in_one_line_with_the_cure(version, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with pytest.warns(RuntimeWarning, match=version) as caught:
        compatibility.warn_if_affected(version)
    message = str(caught[0].message)
    assert compatibility.CURE in message
    assert "\n" not in message


@pytest.mark.parametrize(("version", "flags"), [("0.10.1", ""), ("0.12.0", ""), ("0.10.2", compatibility.CURE)])
def test_other_releases_and_cured_ones_are_silent(version, flags, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compatibility.warn_if_affected(version)


def test_importing_nnfx_warns():
    pretend = "import jax, jaxlib.version; jaxlib.version.__version__ = '0.10.2'; import nnfx"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", pretend], capture_output=True, text=True, env=environment, check=True
    )
    assert "RuntimeWarning: jaxlib 0.10.2" in result.stderr
