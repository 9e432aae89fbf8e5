import hashlib
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

import nnfx
from nnfx import compatibility
from nnfx.data.permutation import permutation

ROOT = Path(__file__).parent.parent


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


# Differences between releases: one test for each row of the table in README.md.


def in_a_process(script, flags=""):
    """Run a script with XLA's default flags, or with the given ones."""
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_table_of_the_readme_has_a_test_for_each_row():
    section = (ROOT / "README.md").read_text().split("## Releases of JAX")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert rows
    for row, tests in zip(rows, named, strict=True):
        assert len(tests) == 1, row
        assert tests[0] in globals(), row


def test_gradients_of_padding_beyond_the_kernel():
    """XLA on CPUs, float32, padding beyond the kernel on one side of an axis only: wrong up to jaxlib 0.10.1."""
    inputs, kernel = np.random.default_rng(0).normal(size=(2, 3, 5, 6, 2))[0], np.ones((3, 2, 2, 3))

    def value(x):
        layouts = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (1, 1), [(3, 3), (4, 0)], dimension_numbers=layouts
        )
        return jnp.sin(out).sum()

    single = jax.grad(value)(jnp.asarray(inputs, jnp.float32))
    with jax.enable_x64(True):
        double = jax.grad(value)(jnp.asarray(inputs, jnp.float64))
    is_right = np.allclose(single, double, rtol=1e-3, atol=1e-3)
    assert is_right == (jaxlib.version.__version_info__ >= (0, 11))


MAXOUT = """
import jax, numpy as np
x = np.linspace(-1, 1, 201)[:, None].astype(np.float32)
kernel, bias = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
def loss(kernel, bias):
    pieces = x @ kernel[None] + bias[None]
    return ((pieces.reshape(-1, 1, 6).max(-1) - x**2) ** 2).mean()
print(np.isfinite(jax.jit(jax.grad(loss, argnums=1))(kernel, bias)).all())
"""


@pytest.mark.slow
def test_the_lowest_level_of_optimisation_computes_infinities():
    """Gradients of a maximum over a group are infinite with `--xla_backend_optimization_level=0`, in every release."""
    assert in_a_process(MAXOUT).stdout.split() == ["True"]
    assert in_a_process(MAXOUT, "--xla_backend_optimization_level=0").stdout.split() == ["False"]


def test_an_unknown_flag_ends_the_process():
    """`--xla_cpu_use_fusion_emitters` is known up to jaxlib 0.10; the tests try it in another process first."""
    ended = in_a_process("import jax; jax.devices()", "--xla_cpu_use_fusion_emitters=false")
    assert (ended.returncode == 0) == (jaxlib.version.__version_info__ < (0, 11))


SAME_BITS = {
    "order": "b8a0663a95ce",
    "draws": "8fd4d579ee0c",
    "data": "3f6fd105fcc3",
    "mlp": "759ec14c727d",
    "lenet": "d745fc92ef87",
}
"""What a key decides, written down by jaxlib 0.9.2, 0.10.1 and 0.12.0.1 alike: one of them cannot see the others."""

ORTHOGONAL = [0.323155, -0.035037, -0.347481, -0.692099]
"""The beginning of an orthogonal kernel, to six digits: LAPACK computes it, whose last digits depend on the chip."""


def test_a_key_decides_the_same_bits_in_every_release():
    key = jax.random.key(0)
    data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
    models = {"mlp": (nnfx.models.mlp((16,)), (1, 2)), "lenet": (nnfx.models.lenet(), (1, 28, 28, 1))}
    drawn = {
        "order": permutation(key, 1000),
        "draws": jax.random.normal(key, (1000,)),
        "data": (data.train, data.valid),
        **{name: model.init(key, jnp.zeros(shape)) for name, (model, shape) in models.items()},
    }
    assert {name: digest(tree) for name, tree in drawn.items()} == SAME_BITS
    kernel = nnfx.models.lstm(1, (8,)).init(key, jnp.zeros((1, 5, 2)))["params"]["layer_0"]["recurrent_kernel"]
    np.testing.assert_allclose(kernel[0, :4], ORTHOGONAL, atol=2e-6)


def digest(tree):
    """The first digits of the checksum of all bytes of a tree."""
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        whole.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return whole.hexdigest()[:12]
