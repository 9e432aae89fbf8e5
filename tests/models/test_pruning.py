import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import models
from nnfx.models import magnitude_masks, masked
from nnfx.types import Batch

RNG = np.random.default_rng(0)
PARAMS = {
    "hidden": {"kernel": RNG.normal(size=(7, 5)).astype(np.float32), "bias": np.ones(5, np.float32)},
    "output": {"kernel": RNG.normal(size=(5, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)},
}
KERNELS = [PARAMS[name]["kernel"] for name in ("hidden", "output")]
BATCH = Batch(jnp.asarray(RNG.normal(size=(12, 4)), jnp.float32), jnp.asarray(RNG.normal(size=12)), jnp.ones(12))
PLAIN = models.mlp((6,))
PRUNED = masked(PLAIN, functools.partial(magnitude_masks, keep=0.3))
MASKS_OF = jax.jit(magnitude_masks, static_argnames="per_layer")


def largest(values, keep):
    """The masks of the largest of all values of several arrays, in NumPy."""
    every = np.sort(np.abs(np.concatenate([each.ravel() for each in values])))[::-1]
    kept = round(keep * len(every))
    return [np.abs(each) >= every[kept - 1] if kept else np.zeros(each.shape, bool) for each in values]


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.2, 0.5, 0.97, 1.0])
def test_masks_keep_the_largest_weights(keep):
    masks = MASKS_OF(PARAMS, keep)
    for name, expected in zip(PARAMS, largest(KERNELS, keep), strict=True):
        np.testing.assert_array_equal(masks[name]["kernel"], expected)
        assert masks[name]["bias"].all()
    masks = MASKS_OF(PARAMS, keep, per_layer=True)
    for name, kernel in zip(PARAMS, KERNELS, strict=True):
        np.testing.assert_array_equal(masks[name]["kernel"], largest([kernel], keep)[0])


@pytest.mark.parametrize("amount", [0.2, 0.6, 0.8])  # of which no layer has half a weight
def test_masks_are_those_of_pytorch(amount):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    def layers():
        found = [torch.nn.Linear(*kernel.shape) for kernel in KERNELS]
        for layer, kernel in zip(found, KERNELS, strict=True):
            layer.weight.data = torch.tensor(kernel.T.copy())
        return found

    together, single = layers(), layers()
    prune.global_unstructured([(layer, "weight") for layer in together], prune.L1Unstructured, amount=amount)
    for layer in single:
        prune.l1_unstructured(layer, "weight", amount=amount)
    for theirs, per_layer in ((together, False), (single, True)):
        masks = magnitude_masks(PARAMS, 1 - amount, per_layer)
        for name, layer in zip(PARAMS, theirs, strict=True):
            np.testing.assert_array_equal(masks[name]["kernel"], layer.weight_mask.numpy().T)


def test_training_is_that_of_a_pruned_network_of_pytorch():
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    variables = PRUNED.init(jax.random.key(0), BATCH.inputs)
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1))
    for layer, name in ((theirs[0], "hidden_0"), (theirs[2], "output")):
        layer.weight.data = torch.tensor(np.array(variables["params"][name]["kernel"]).T)
        layer.bias.data = torch.tensor(np.array(variables["params"][name]["bias"]))
        prune.custom_from_mask(layer, "weight", torch.tensor(np.array(variables["masks"][name]["kernel"]).T))
    descent = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    x, y = (torch.tensor(np.array(part, np.float32)) for part in BATCH[:2])
    for _ in range(20):
        descent.zero_grad()
        (theirs(x)[:, 0] - y).square().mean().backward()
        descent.step()

    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    step = jax.jit(nnfx.make_step(PRUNED, nnfx.losses.mean_square_error, optimizer))
    state = nnfx.init_state(jax.random.key(1), models.pretrained(PRUNED, variables), optimizer, BATCH.inputs)
    for _ in range(20):
        state, _ = step(state, BATCH)
    outputs = PRUNED.apply(state.variables, BATCH.inputs)
    np.testing.assert_allclose(outputs, theirs(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_equal_weights_are_kept_in_order():
    assert magnitude_masks({"w": jnp.ones((2, 3))}, 0.5)["w"].tolist() == [[True] * 3, [False] * 3]


def test_pruning_again_prunes_more_and_nothing_comes_back():
    params = PARAMS
    before = MASKS_OF(params, 1.0)
    for keep in (0.8, 0.64, 0.512, 0.1):
        masks = MASKS_OF(params, keep)
        assert all((now <= then).all() for now, then in zip(*map(jax.tree.leaves, (masks, before)), strict=True))
        params, before = jax.tree.map(np.multiply, masks, PARAMS), masks


@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(0.01, weight_decay=1.0), pytest.param(optax.sgd(0.1, momentum=0.9), marks=pytest.mark.slow)],
)
def test_pruned_weights_have_no_gradient_and_remain_zero(optimizer):
    state = nnfx.init_state(jax.random.key(0), PRUNED, optimizer, BATCH.inputs)
    step = jax.jit(nnfx.make_step(PRUNED, nnfx.losses.mean_square_error, optimizer))
    before = state.params
    for _ in range(5):
        state, _ = step(state, BATCH)
    for name in ("hidden_0", "output"):
        mask = np.asarray(state.model_state["masks"][name]["kernel"])
        is_changed = np.asarray(state.params[name]["kernel"] != before[name]["kernel"])
        np.testing.assert_array_equal(np.asarray(state.params[name]["kernel"]) != 0, mask)
        assert is_changed[mask].any()
    assert sum(int(mask.sum()) for mask in jax.tree.leaves(state.model_state) if mask.ndim == 2) == round(0.3 * 30)


def test_the_outputs_are_those_of_the_plain_model_with_pruned_weights():
    drawn = PLAIN.init(jax.random.key(0), BATCH.inputs)
    masks = magnitude_masks(drawn["params"], 0.3)
    expected = PLAIN.apply({"params": jax.tree.map(jnp.multiply, masks, drawn["params"])}, BATCH.inputs)
    outputs = PRUNED.apply({**drawn, "masks": masks}, BATCH.inputs)
    np.testing.assert_array_equal(outputs, expected)
    poisoned = jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, jnp.nan), drawn["params"], masks)
    np.testing.assert_array_equal(PRUNED.apply({"params": poisoned, "masks": masks}, BATCH.inputs), expected)


def test_every_member_of_a_sweep_has_masks_of_its_own_in_one_program(tmp_path):
    traces, before = [], []

    def pruned(keep):
        traces.append(1)
        return masked(PLAIN, lambda params: magnitude_masks(params, keep))

    data = nnfx.data.prepare(BATCH.inputs, BATCH.targets, standardize=False)
    train = nnfx.fit(pruned, nnfx.losses.mean_square_error, optax.adamw, epochs=2)
    for shares in ((0.1, 0.5), (0.2, 1.0)):
        sweep = nnfx.sweeps.sweep(train, data, key=jax.random.key(0), seeds=2, keep=shares, learning_rate=0.1)
        kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(sweep.variables["params"]) if leaf.ndim == 3]
        assert (
            sum((kernel != 0).sum((1, 2)) for kernel in kernels).tolist() == [round(each * 30) for each in shares] * 2
        )
        before.append(len(traces))
    assert before[0] == before[1], "other fractions need no other program"
    member = sweep.member(0)
    member.save(tmp_path / "pruned")
    opened = nnfx.load(tmp_path / "pruned")
    np.testing.assert_allclose(opened.predict(BATCH.inputs), member.predict(BATCH.inputs), rtol=1e-6)
    for mask, same in zip(*(jax.tree.leaves(each.variables["masks"]) for each in (opened, member)), strict=True):
        np.testing.assert_array_equal(mask, same)


def test_rounds_of_pruning_are_a_scan_and_seeds_a_map(key):
    """Runs whose masks depend on earlier runs are still one program, and equal runs one after the other."""
    data = nnfx.data.prepare(BATCH.inputs, BATCH.targets, standardize=False)

    def trained(start, masks):
        ticket = masked(models.pretrained(PLAIN, {"params": start}), masks)
        train = nnfx.fit(ticket, nnfx.losses.mean_square_error, optax.sgd, epochs=3)
        return train(key, data, learning_rate=0.1).state.params

    def prune_twice(key):
        start = PLAIN.init(key, data.train.inputs)["params"]

        def prune(params, keep):
            after = trained(start, magnitude_masks(params, keep))
            return after, after

        return jax.lax.scan(prune, start, jnp.array([1.0, 0.5, 0.2]))[1]

    keys = jax.random.split(key)
    together = jax.jit(jax.vmap(prune_twice))(keys)
    for i, each in enumerate(keys):
        params = start = PLAIN.init(each, data.train.inputs)["params"]
        for turn, keep in enumerate((1.0, 0.5, 0.2)):
            params = trained(start, magnitude_masks(params, keep))
            found = jax.tree.map(lambda leaf, i=i, turn=turn: leaf[i, turn], together)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, params)


@pytest.mark.slow
def test_a_pruned_recurrent_network_streams():
    model = masked(models.gru(2, (4,), returns="all"), functools.partial(magnitude_masks, keep=0.4))
    inputs = RNG.normal(size=(2, 5, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), inputs)

    @jax.jit
    def both(variables, inputs):
        def step(state, x):
            return model.stream.step(variables, state, x)

        return jax.lax.scan(step, model.stream.start(2), inputs.swapaxes(0, 1))[1], model.apply(variables, inputs)

    streamed, expected = both(variables, inputs)
    np.testing.assert_allclose(streamed.swapaxes(0, 1), expected, rtol=1e-5, atol=1e-6)
    assert masked(PLAIN, lambda params: params).stream is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: magnitude_masks(PARAMS, 1.5), ValueError, "keep: expected .* at least 0 and at most 1, got 1.5"),
        (lambda: magnitude_masks(PARAMS, "half"), TypeError, "keep: expected a number, got 'half'"),
        (lambda: magnitude_masks({"w": [1.0]}, 0.5), TypeError, "params: expected arrays by name, got 1.0 for w.0"),
        (lambda: masked("mlp", PARAMS), TypeError, "model: expected a Model, .* got 'mlp'"),
        (lambda: _drawn({"a": 1}), ValueError, "masks: expected the tree of the parameters, hidden_0.bias, .* got a"),
        (lambda: _drawn(lambda params: params), TypeError, "masks: expected booleans for hidden_0.bias, got float32"),
        (
            lambda: _drawn(lambda params: jax.tree.map(lambda leaf: leaf[:1] != 0, params)),
            ValueError,
            r"masks: expected the shape \(6,\) for hidden_0.bias, got bool\[1\]",
        ),
        (lambda: masked(PRUNED, magnitude_masks).init(jax.random.key(0), BATCH.inputs), ValueError, "model: .* masked"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def _drawn(masks):
    return masked(PLAIN, masks).init(jax.random.key(0), BATCH.inputs)
