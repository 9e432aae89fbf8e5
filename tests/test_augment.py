import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

import nnfx
from nnfx import augment
from nnfx.types import Batch, Sequences

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@functools.cache
def images(rows=64, dtype=jnp.float32):
    x = jax.random.uniform(jax.random.key(5), (rows, 6, 4, 2)).astype(dtype)
    return Batch(x, jnp.arange(rows) % 3, jnp.ones(rows))


AUGMENTS = {
    "gaussian_noise": (augment.gaussian_noise, 0.3),
    "flip": (augment.flip, None),
    "shift": (augment.shift, 2.0),
    "rotation": (augment.rotation, 40.0),
    "cutout": (augment.cutout, 3.0),
    "mixup": (functools.partial(augment.mixup, classes=3), 0.5),
}
LINEAR = {name: parts for name, parts in AUGMENTS.items() if name != "gaussian_noise"}


def act(name, key, batch):
    """Apply an augmentation with its number from the table."""
    function, number = AUGMENTS[name]
    return function(key, batch) if number is None else function(key, batch, number)


# compiled as in a step, which is also faster here
compiled = jax.jit(act, static_argnums=0)
flip, shift, rotation, cutout = (
    jax.jit(each) for each in (augment.flip, augment.shift, augment.rotation, augment.cutout)
)
mixup = jax.jit(augment.mixup, static_argnames="classes")


def same(image, rows=4000):
    """Return a batch that repeats one image."""
    x = jnp.asarray(image, jnp.float32)
    return Batch(jnp.tile(x.reshape(1, *x.shape[:2], -1), (rows, 1, 1, 1)), jnp.zeros(rows), jnp.ones(rows))


def assert_share(hits, probability):
    """Assert that the frequency of hits is their probability, within four standard errors."""
    error = np.sqrt(probability * (1 - probability) / hits.size)
    assert abs(np.mean(hits) - probability) < 4 * error


def assert_unrelated(*draws):
    """Assert that draws of neighbours in the batch, and of different quantities, are uncorrelated."""
    for i, a in enumerate(draws):
        for b in [np.roll(a, 1), *draws[i + 1 :]]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(a.size)


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize(
    "dtype",
    [
        jnp.float32,
        *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (jnp.bfloat16, jnp.float16)),
        jnp.float64,
    ],
)
def test_shapes_and_dtypes_stay_and_what_is_drawn_depends_on_the_key_alone(name, dtype, key):
    with jax.enable_x64(dtype == jnp.float64):
        batch = images(dtype=dtype)
        once, again, other = (jax.device_get(compiled(name, k, batch)) for k in (key, key, jax.random.key(1)))
        batch = jax.device_get(batch)
    assert once.inputs.shape == batch.inputs.shape
    assert once.inputs.dtype == dtype
    assert np.isfinite(once.inputs).all()
    assert (once.inputs != batch.inputs).any()
    assert (once.inputs != other.inputs).any()
    np.testing.assert_array_equal(once.inputs, again.inputs)
    np.testing.assert_array_equal(once.weights, batch.weights)
    if name != "mixup":
        np.testing.assert_array_equal(once.targets, batch.targets)


# without compilation, the others are many programs of one operation each
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("shift", "rotation", "mixup") else [])
        for name in AUGMENTS
    ],
)
def test_compiled_it_does_the_same(name, key):
    np.testing.assert_allclose(compiled(name, key, images()).inputs, act(name, key, images()).inputs, atol=1e-5)


@pytest.mark.parametrize("name", AUGMENTS)
def test_mapped_over_keys_it_is_the_loop(name):
    keys, batch = jax.random.split(jax.random.key(2), 3), images()
    mapped = jax.jit(jax.vmap(lambda key: compiled(name, key, batch).inputs))(keys)
    looped = np.stack([compiled(name, key, batch).inputs for key in keys])
    np.testing.assert_allclose(mapped, looped, atol=1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_its_gradient_is_its_adjoint(name, key):
    # all but the noise are linear in the inputs: the gradient does not depend on them, and <gradient, x> = <v, f(x)>
    batch = images(rows=8)
    v = jax.random.normal(key, batch.inputs.shape)

    @jax.jit
    @jax.value_and_grad
    def project(x):
        return jnp.vdot(v, compiled(name, key, batch._replace(inputs=x)).inputs)

    projected, gradient = project(batch.inputs)
    np.testing.assert_allclose(np.vdot(gradient, batch.inputs), projected, rtol=1e-4)
    np.testing.assert_allclose(gradient, project(-3 * batch.inputs)[1], atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(AUGMENTS) - {"flip"}))
def test_numbers_are_traced_and_zero_changes_nothing(name, key):
    function, number = AUGMENTS[name]
    traces, batch = [], images()

    @jax.jit
    def traced(number):
        traces.append(number)
        return function(key, batch, number).inputs

    np.testing.assert_array_equal(traced(0.0), batch.inputs)
    assert (traced(number) != batch.inputs).any()
    assert len(traces) == 1


def test_a_flip_is_left_to_right_and_happens_half_the_time(key):
    batch = images(2000)
    x, flipped = np.asarray(batch.inputs), np.asarray(flip(key, batch).inputs)
    is_mirrored = (flipped == np.flip(x, 2)).all((1, 2, 3))
    np.testing.assert_array_equal(flipped, np.where(is_mirrored[:, None, None, None], np.flip(x, 2), x))
    assert_share(is_mirrored, 0.5)
    assert_unrelated(is_mirrored.astype(float))


def offsets(batch, image, pixels):
    """Return the offset of each image: the only one at which it is a crop of the padded image."""
    padded = np.pad(image, pixels)
    crops = {
        (a, b): padded[pixels - a :, pixels - b :][: image.shape[0], : image.shape[1]]
        for a in range(-pixels, pixels + 1)
        for b in range(-pixels, pixels + 1)
    }
    keys, values = list(crops), np.stack(list(crops.values()))
    found = [np.flatnonzero((values == one).all((1, 2))) for one in np.asarray(batch.inputs)[..., 0]]
    assert all(len(hits) == 1 for hits in found)
    return np.array([keys[hits[0]] for hits in found])


def test_a_shift_is_a_crop_of_the_padded_image_uniform_over_offsets(key):
    image = np.arange(1.0, 31).reshape(5, 6)
    moved = offsets(shift(key, same(image), 2), image, 2)
    counts = np.unique(moved, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert_unrelated(*moved.T.astype(float))


def test_a_shift_between_whole_pixels_is_rounded(key):
    image = np.arange(1.0, 31).reshape(5, 6)
    moved = offsets(shift(key, same(image), 0.5), image, 1)
    assert_share(moved[:, 0] == 0, 1 / 2)
    assert_share(moved[:, 1] == 1, 1 / 4)


def test_what_comes_from_outside_is_filled(key):
    batch = same(np.ones((3, 4)), rows=50)
    assert set(np.unique(shift(key, batch, 1, fill=-7.0).inputs)) == {-7.0, 1.0}
    assert set(np.unique(cutout(key, batch, 1, fill=-7.0).inputs)) == {-7.0, 1.0}
    far = shift(key, batch, 1e12).inputs
    assert (far == 0).all()
    turned = rotation(key, batch, 180.0, fill=-7.0).inputs
    np.testing.assert_allclose(turned, -7 + 8 * rotation(key, batch, 180.0).inputs, atol=1e-5)
    np.testing.assert_allclose(rotation(key, batch, 180.0, fill=1.0).inputs, 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 9), (8, 11)])
@pytest.mark.parametrize(
    "degrees", [pytest.param(0.0, marks=pytest.mark.slow), 17.0, 90.0, pytest.param(133.0, marks=pytest.mark.slow)]
)
def test_a_rotation_is_that_of_scipy(degrees, shape, key, monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype, low, high: jnp.full(shape, high, dtype))
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    batch = Batch(jnp.asarray(x), jnp.zeros(2), jnp.ones(2))
    turned = jax.jit(lambda key: augment.rotation(key, batch, degrees, fill=0.5))(key).inputs  # compiled anew
    expected = scipy.ndimage.rotate(
        x, degrees, axes=(1, 2), reshape=False, order=1, mode="grid-constant", cval=0.5, prefilter=False
    )
    np.testing.assert_allclose(turned, expected, atol=2e-5)


def test_angles_are_uniform_and_independent(key):
    ramp = np.tile(np.arange(-2.0, 3), (5, 1))  # bilinear interpolation is exact on a ramp, which reveals the angle
    turned = np.asarray(rotation(key, same(ramp), 60.0).inputs)[..., 0]
    angles = np.degrees(np.arctan2(turned[:, 1, 2], turned[:, 2, 3]))
    assert scipy.stats.kstest(angles, scipy.stats.uniform(-60, 120).cdf).pvalue > 1e-3
    assert_unrelated(angles)


@pytest.mark.parametrize("size", [1, 2, 3, 2.5])
def test_a_cutout_is_a_square_about_a_uniform_point(size, key):
    height, width = 7, 9
    blank = np.asarray(cutout(key, same(np.ones((height, width))), size).inputs)[..., 0] == 0
    rows, columns = blank.any(2), blank.any(1)
    np.testing.assert_array_equal(blank, rows[:, :, None] & columns[:, None, :])
    for covered, length in ((rows, height), (columns, width)):
        assert (np.abs(np.diff(np.pad(covered, ((0, 0), (1, 1))).astype(int))).sum(1) <= 2).all()  # without gaps
        point = (np.arange(100_000) + 0.5) / 100_000 * length
        expected = (np.abs(np.arange(length)[:, None] + 0.5 - point) < size / 2).mean(1)
        for i in range(length):
            assert_share(covered[:, i], expected[i])
        away = covered[~covered[:, 0] & ~covered[:, -1]].sum(1)
        away = away[away > 0]
        assert set(away) <= {int(np.floor(size)), int(np.ceil(size))}
        assert abs(away.mean() - size) < 0.1
    assert_unrelated(rows.argmax(1).astype(float), columns.argmax(1).astype(float))


def pairs(key, alpha, weights):
    """Return shares and partners, read off a mixup of unit vectors; NaN and −1 for an example mixed with itself."""
    rows = len(weights)
    batch = Batch(jnp.eye(rows), jnp.arange(rows) % 5, jnp.asarray(weights, jnp.float32))
    after = mixup(key, batch, alpha, classes=5)
    x = np.asarray(after.inputs)
    own = np.diag(x)
    others = x - np.diag(own)
    partners = np.where(others.max(1) > 0, others.argmax(1), -1)
    assert ((others > 0).sum(1) <= 1).all()
    np.testing.assert_allclose(x.sum(1), 1, atol=1e-6)
    # the targets are mixed like the inputs
    np.testing.assert_allclose(after.targets, x @ np.eye(5)[np.arange(rows) % 5], atol=1e-6)
    np.testing.assert_array_equal(after.weights, batch.weights)
    return np.where(partners >= 0, own, np.nan), partners


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_the_larger_part_of_a_beta(alpha, key):
    shares, partners = pairs(key, alpha, np.ones(2000))
    met = np.flatnonzero(partners >= 0)  # with a share of 1, the partner is unknown
    assert (shares[met] >= 0.5).all()
    expected = scipy.stats.beta(alpha, alpha)
    shares = np.where(partners >= 0, shares, 1)
    for level in (0.6, 0.75, 0.9):
        assert_share(shares > level, 2 * expected.cdf(1 - level))
    assert abs(partners[met].mean() - 999.5) < 4 * 2000 / np.sqrt(12 * len(met))
    assert_unrelated(shares[met], partners[met].astype(float))


def test_partners_come_in_proportion_to_their_weights_and_padding_never(key):
    weights = np.resize([1.0, 0.0, 3.0, 0.5], 2000)
    _, partners = pairs(key, 1.0, weights)
    partners = partners[partners >= 0]
    assert (weights[partners] > 0).all()
    assert_share(weights[partners] == 3, 3 / 4.5)
    assert_share(weights[partners] == 0.5, 0.5 / 4.5)


def test_where_all_is_padding_nothing_is_mixed(key):
    batch = images()._replace(weights=jnp.zeros(64))
    np.testing.assert_array_equal(mixup(key, batch, 1.0, classes=3).inputs, batch.inputs)


def test_float_targets_are_mixed_as_they_are(key):
    x = jax.random.normal(key, (100, 2))
    batch = Batch({"a": x, "b": x[:, 0]}, (x @ jnp.array([1.0, -2.0])).astype(jnp.bfloat16), jnp.ones(100))
    after = mixup(key, batch, 0.5)
    assert after.targets.dtype == jnp.bfloat16
    assert (after.inputs["a"] != x).any()
    np.testing.assert_array_equal(after.inputs["a"][:, 0], after.inputs["b"])
    line = after.inputs["a"] @ jnp.array([1.0, -2.0])
    np.testing.assert_allclose(np.float32(after.targets), line, atol=0.05)  # linear relations are preserved


def test_alpha_has_a_gradient(key):
    def mean_square(alpha):
        return (mixup(key, images(), alpha, classes=3).inputs ** 2).mean()

    slope = jax.grad(mean_square)(1.0)
    np.testing.assert_allclose(slope, (mean_square(1.05) - mean_square(0.95)) / 0.1, rtol=0.05)
    assert jax.grad(mean_square)(0.0) == 0


def test_noise_has_the_stated_deviation_and_no_mean(key):
    batch = images(2000)
    noise = np.asarray(augment.gaussian_noise(key, batch, 0.3).inputs - batch.inputs)
    standard_error = 0.3 / np.sqrt(noise.size)
    assert abs(noise.mean()) < 4 * standard_error
    assert abs(noise.std() - 0.3) < 4 * standard_error


def test_an_accuracy_on_mixed_targets_counts_the_larger_part(key):
    batch = Batch(jnp.eye(3), jnp.arange(3), jnp.ones(3))
    after = mixup(key, batch, 1.0, classes=3)
    np.testing.assert_array_equal(nnfx.metrics.accuracy(after.inputs, after.targets), jnp.ones(3))


def test_wrong_input(key):
    with pytest.raises(ValueError, match="noise: .*at least 0, got -1"):
        augment.gaussian_noise(key, images(), -1.0)
    with pytest.raises(TypeError, match="key: expected a typed key"):
        augment.gaussian_noise(0, images(), 1.0)


def test_wrong_images_and_numbers(key):
    batch = images()
    for name, function in (("pixels", augment.shift), ("degrees", augment.rotation), ("size", augment.cutout)):
        with pytest.raises(ValueError, match=f"{name}: .*at least 0, got -1"):
            function(key, batch, -1.0)
        with pytest.raises(TypeError, match=f"{name}: expected a number, got 'a'"):
            function(key, batch, "a")
        with pytest.raises(ValueError, match="fill: expected a finite number, got nan"):
            function(key, batch, 1.0, fill=np.nan)
    for name in ("flip", "shift", "rotation", "cutout"):
        with pytest.raises(ValueError, match=r"inputs: expected floats \(batch, height, .*, got float32\[64,6,4\]"):
            act(name, key, batch._replace(inputs=batch.inputs[..., 0]))
        with pytest.raises(ValueError, match=r"inputs: expected floats .*, got uint8\[64,6,4,2\]"):
            act(name, key, batch._replace(inputs=batch.inputs.astype(jnp.uint8)))
        with pytest.raises(ValueError, match=r"inputs: expected floats .*, got \{"):
            act(name, key, batch._replace(inputs={"image": 0}))
        with pytest.raises(TypeError, match="key: expected a typed key"):
            act(name, 0, batch)


def test_wrong_mixup(key):
    batch = images()
    with pytest.raises(ValueError, match="alpha: .*at least 0, got -1"):
        augment.mixup(key, batch, -1.0, classes=3)
    with pytest.raises(TypeError, match="key: expected a typed key"):
        augment.mixup(0, batch, 1.0, classes=3)
    with pytest.raises(
        ValueError, match=r"classes: expected the number of classes .*, got none for targets int32\[64\]"
    ):
        augment.mixup(key, batch, 1.0)
    with pytest.raises(ValueError, match="classes: expected None for targets that are already floats, got 3"):
        augment.mixup(key, batch._replace(targets=jnp.ones(64)), 1.0, classes=3)
    with pytest.raises(ValueError, match="classes: expected at least 2, got 1"):
        augment.mixup(key, batch, 1.0, classes=1)
    with pytest.raises(TypeError, match="classes: expected a positive integer, got 3.0"):
        augment.mixup(key, batch, 1.0, classes=3.0)
    with pytest.raises(ValueError, match="targets: expected labels from 0 to 1, got labels from 0 to 2"):
        augment.mixup(key, batch, 1.0, classes=2)
    with pytest.raises(TypeError, match=r"inputs: expected floats, got uint8\[64,6,4,2\]"):
        augment.mixup(key, batch._replace(inputs=batch.inputs.astype(jnp.uint8)), 1.0, classes=3)


def test_the_lengths_of_sequences_are_not_disturbed(key):
    sequences = Sequences(jnp.zeros((4, 3, 2)), jnp.array([3, 1, 2, 3]))
    batch = Batch(sequences, jnp.zeros(4), jnp.ones(4))
    found = augment.gaussian_noise(key, batch, 0.5).inputs
    np.testing.assert_array_equal(found.lengths, sequences.lengths)
    assert found.lengths.dtype == sequences.lengths.dtype
    assert (found.values != 0).all()
    with pytest.raises(TypeError, match=r"inputs: expected floats, got int32\[4\] in Sequences, whose lengths cannot"):
        augment.mixup(key, batch, alpha=1.0)
