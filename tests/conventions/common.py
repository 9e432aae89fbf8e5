"""What the measures of conventions share: modules applied, and the laws that initial weights follow."""

import inspect

import jax
import numpy as np

KEY = jax.random.key(0)
GIVEN = "must be given"
PLAIN = "U(±1/√{})"
LIBRARIES = "Flax", "Haiku", "Keras", "PyTorch", "nnfx"


def number(value):
    """Write a number as the table does: 0, 1e-5, 0.99."""
    is_small = 0 < value < 2e-3
    return np.format_float_scientific(value, 0, trim="-", exp_digits=1) if is_small else f"{float(value):.3g}"


def default(function, name):
    """Return the default of an argument, or that it has none."""
    value = inspect.signature(function).parameters[name].default
    return GIVEN if value is inspect.Parameter.empty else value


def haiku(hk, make, *args, params=None, state=None):
    """Apply a module of Haiku to arguments, and return its parameters, its outputs and its state."""
    net = hk.transform_with_state(lambda *args: make()(*args))
    drawn, start = net.init(KEY, *args)
    return (params or drawn), *net.apply(params or drawn, start if state is None else state, KEY, *args)


def linen(module, *args, **options):
    return module.init({"params": KEY, "dropout": KEY}, *args, **options)


def first(array):
    return float(np.asarray(array).ravel()[0])


def laws(inputs, outputs):
    """Return the standard deviation and the largest possible value of each law."""
    normal, cut = np.sqrt(1 / inputs), 0.87962566
    glorot = np.sqrt(2 / (inputs + outputs))
    return {
        "`lecun_normal`": (normal, 2 / cut * normal),
        "0.88 × `lecun_normal`": (cut * normal, 2 * normal),
        "`glorot_uniform`": (glorot, np.sqrt(3) * glorot),
        "uniform": (normal / np.sqrt(3), normal),
    }


def law(kernel, inputs, outputs):
    """Return the law that a kernel follows."""
    kernel = np.asarray(kernel)
    if (kernel == 0).all():
        return "0"
    of = {name: law for name, law in laws(inputs, outputs).items() if abs(kernel.std() / law[0] - 1) < 0.02}
    (name,) = [name for name, (_, most) in of.items() if 0.97 < np.abs(kernel).max() / most <= 1 + 1e-6]
    return name


def is_spread(bias, inputs):
    """Return whether a bias is spread over ±1/√n, as far as so few numbers can tell."""
    return bool(0.9 < np.abs(bias).max() * np.sqrt(inputs) <= 1 and abs(bias.mean()) * np.sqrt(inputs) < 0.3)


def is_orthogonal(kernel):
    return np.allclose(kernel @ kernel.T, np.eye(len(kernel)), atol=1e-4)
