import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from nnfx import models
from nnfx.insight import features
from nnfx.types import Model
from tests.insight.networks import IMAGES, LINEAR, MODEL, VARIABLES, by_hand, close, linear


def test_the_outputs_of_layers_are_those_computed_by_hand():
    outputs = features.layer_outputs(MODEL, VARIABLES, IMAGES)
    expected = by_hand(VARIABLES["params"], IMAGES)
    assert list(outputs) == list(expected)
    for name, output in outputs.items():
        close(output, expected[name], err_msg=name)
    close(outputs["dense/output"], MODEL.apply(VARIABLES, IMAGES))


def test_layers_keep_their_order_under_jit():
    outputs = jax.jit(features.layer_outputs, static_argnums=0)(MODEL, VARIABLES, IMAGES)
    assert list(outputs) == ["conv_0", "conv_1", "dense/hidden_0", "dense/output"]
    model = models.resnet(depth=8, width=2)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    names = list(jax.eval_shape(lambda variables: features.layer_outputs(model, variables, IMAGES), variables))
    assert names[:2] == ["stem/batch_norm", "stem"]
    assert names[-1] == "output"


def test_a_model_of_one_layer_and_a_layer_used_twice_have_names():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4, name="layer")
            return nn.Dropout(0.5, deterministic=True)(layer(layer(x))) * 2

    assert list(features.layer_outputs(LINEAR, linear(), jnp.ones((2, 5)))) == ["outputs"]
    model = models.from_linen(Twice())
    outputs = features.layer_outputs(model, model.init(jax.random.key(0), jnp.ones((1, 4))), jnp.ones((2, 4)))
    assert list(outputs) == ["layer", "layer[1]", "outputs"]  # dropout that is switched off returns its input
    close(outputs["outputs"], 2 * outputs["layer[1]"])


def test_what_a_lifted_transformation_hides_is_left_out():
    class Partly(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="seen")(nn.remat(nn.Dense)(3, name="hidden")(x))

    model = models.from_linen(Partly())
    variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    assert list(features.layer_outputs(model, variables, jnp.ones((2, 4)))) == ["seen"]
    with pytest.raises(ValueError, match="Flax Linen modules"):
        features.layer_outputs(Model(model.init, jax.jit(model.apply)), variables, jnp.ones((2, 4)))


@pytest.mark.parametrize(
    "model", [models.from_nnx(lambda rngs: nnx.Linear(5, 3, rngs=rngs)), Model(None, lambda variables, x: x)]
)
def test_a_model_without_linen_modules_is_refused(model):
    variables = {} if model.init is None else model.init(jax.random.key(0), jnp.ones((1, 5)))
    with pytest.raises(ValueError, match=r"model: expected a model of Flax Linen modules.*from_linen"):
        features.layer_outputs(model, variables, jnp.ones((1, 5)))


def test_what_is_not_a_model_is_refused():
    with pytest.raises(TypeError, match="model: expected a Model"):
        features.layer_outputs(None, {}, IMAGES)
