import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nnfx import schedules

STEPS = np.arange(40)
SCHEDULES = {
    "polynomial": (
        lambda start, end, steps, power: schedules.polynomial(start, end, steps, power),
        lambda start, end, steps, power: optax.polynomial_schedule(start, end, power, int(steps)),
        [(0.5, 0.1, 20, 1.0), (0.0, 0.3, 30, 2.0), (0.2, 0.0, 10, 0.5)],
    ),
    "exponential_decay": (
        schedules.exponential_decay,
        lambda start, steps, decay: optax.exponential_decay(start, int(steps), decay),
        [(0.5, 10, 0.1), (0.2, 3, 0.9), (0.1, 20, 1.5)],
    ),
    "staircase": (
        functools.partial(schedules.exponential_decay, staircase=True),
        lambda start, steps, decay: optax.exponential_decay(start, int(steps), decay, staircase=True),
        [(0.5, 10, 0.1), (0.2, 3, 0.9), (0.1, 20, 1.5)],
    ),
    "warmup_cosine": (
        schedules.warmup_cosine,
        lambda peak, warmup, total, end: optax.warmup_cosine_decay_schedule(0.0, peak, int(warmup), int(total), end),
        [(0.5, 5, 30, 0.1), (0.2, 0, 20, 0.0), (0.1, 10, 11, 0.3)],
    ),
    "one_cycle": (
        schedules.one_cycle,
        lambda peak, total, part, *factors: optax.cosine_onecycle_schedule(int(total), peak, part, *factors),
        [(0.5, 20, 0.25, 25.0, 1e4), (0.2, 32, 0.5, 10.0, 2.0), (0.1, 8, 0.0, 4.0, 4.0)],
    ),
}


@pytest.fixture(params=SCHEDULES)
def case(request):
    return SCHEDULES[request.param]


def over_steps(schedule):
    return jax.vmap(schedule)(jnp.asarray(STEPS))


def columns(rows):
    return tuple(jnp.asarray(column, jnp.float32) for column in zip(*rows, strict=True))


# compiled and mapped, all of them are compared with Optax below
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[] if name == "exponential_decay" else [pytest.mark.slow]) for name in SCHEDULES],
    indirect=True,
)
def test_equal_to_optax(case):
    ours, theirs, rows = case
    for numbers in rows:
        expected = over_steps(theirs(*numbers))
        np.testing.assert_allclose(over_steps(ours(*numbers)), expected, rtol=1e-5, atol=1e-7)
        assert ours(*numbers)(3) == pytest.approx(float(expected[3]), rel=1e-5)


def test_every_number_may_be_mapped_over_at_once(case):
    ours, theirs, rows = case
    mapped = jax.jit(jax.vmap(lambda *numbers: over_steps(ours(*numbers))))(*columns(rows))
    expected = [over_steps(theirs(*numbers)) for numbers in rows]
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-7)


def test_gradients_by_every_number_are_finite_also_at_the_joints(case):
    ours, _, rows = case
    jacobian = jax.jit(jax.jacrev(lambda numbers: over_steps(ours(*numbers))))
    for numbers in columns(zip(*rows, strict=True)):
        assert jnp.isfinite(jacobian(numbers)).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_gradients_equal_finite_differences(name):
    ours, _, rows = SCHEDULES[name]
    steps = jnp.array([2.3, 7.4, 11.9, 17.2])  # away from the joints and the stairs
    with jax.enable_x64(True):

        @jax.jit
        def total(numbers):
            return (jnp.arange(1.0, 5.0) * jax.vmap(ours(*numbers))(steps)).sum()

        numbers = np.array(rows[0]) * 1.01
        h = 1e-6 * np.diag(numbers)
        central = [(total(numbers + d) - total(numbers - d)) / (2 * d.sum()) for d in h]
        np.testing.assert_allclose(jax.grad(total)(jnp.asarray(numbers)), central, rtol=1e-6, atol=1e-12)
        assert all(c != 0 for c in central) or name == "staircase"  # its length has no gradient


def test_one_cycle_does_not_round_the_top_down():
    assert schedules.one_cycle(1.0, 10, pct_start=0.25)(2.5) == pytest.approx(1)
    assert schedules.one_cycle(1.0, 10, pct_start=0.25)(2) < 0.95


def test_optax_still_fails_where_ours_are_for():
    traced = jnp.array([0.1, 0.2])
    for theirs in (
        lambda x: optax.linear_schedule(0.1, 0.0, 10 * x),
        lambda x: optax.cosine_decay_schedule(0.1, 10 * x),
        lambda x: optax.exponential_decay(0.1, 10, x),
        lambda x: optax.warmup_cosine_decay_schedule(0.0, x, 5, 10),
        lambda x: optax.cosine_onecycle_schedule(10, 0.1, x),
        lambda x: optax.contrib.reduce_on_plateau(x),
    ):
        with pytest.raises((jax.errors.TracerBoolConversionError, jax.errors.ConcretizationTypeError)):
            jax.vmap(lambda x, theirs=theirs: theirs(x)(jnp.asarray(3)))(traced)


@pytest.mark.slow
def test_those_of_optax_that_the_docstring_names_may_be_traced():
    traced = jnp.array([0.1, 0.2])
    for theirs in (
        lambda x: optax.linear_schedule(x, x / 2, 10),
        lambda x: optax.warmup_constant_schedule(x / 2, x, 10),
        lambda x: optax.polynomial_schedule(x, x / 2, 10 * x, 10),
        lambda x: optax.cosine_decay_schedule(x, 10, x, 5 * x),
        lambda x: optax.exponential_decay(x, 10, 0.5, end_value=x / 2),
        lambda x: optax.warmup_exponential_decay_schedule(x / 2, x, 3, 10, 0.5),
        lambda x: optax.piecewise_constant_schedule(x, {2: 0.5}),
        lambda x: optax.cosine_onecycle_schedule(10, x),
        lambda x: optax.linear_onecycle_schedule(10, x),
    ):
        mapped = jax.jit(jax.vmap(lambda x, theirs=theirs: theirs(x)(jnp.asarray(3))))(traced)
        np.testing.assert_allclose(mapped, [theirs(float(x))(3) for x in traced], rtol=1e-5)


def test_joined_warm_restarts_with_traced_boundaries():
    def restarts(peak, length):
        cycle = schedules.warmup_cosine(peak, 2, length)
        return over_steps(optax.join_schedules([cycle, cycle], [length]))

    mapped = jax.vmap(restarts)(jnp.array([0.1, 0.2]), jnp.array([10, 15]))
    for row, peak, length in zip(mapped, (0.1, 0.2), (10, 15), strict=True):
        cycle = {"init_value": 0.0, "peak_value": peak, "warmup_steps": 2, "decay_steps": length}
        expected = optax.sgdr_schedule([cycle, cycle])
        np.testing.assert_allclose(row, over_steps(expected), rtol=1e-5, atol=1e-7)


def test_a_schedule_in_an_optimizer_sweeps():
    def train(peak, warmup):
        optimizer = optax.adam(schedules.warmup_cosine(peak, warmup, 20))

        def step(carry, _):
            w, state = carry
            updates, state = optimizer.update(2 * w, state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.ones(2)
        return jax.lax.scan(step, (w, optimizer.init(w)), length=20)[0][0]

    peaks, warmups = jnp.array([0.01, 0.1]), jnp.array([2.0, 5.0])
    mapped = jax.vmap(train)(peaks, warmups)
    for row, peak, warmup in zip(mapped, (0.01, 0.1), (2, 5), strict=True):
        np.testing.assert_allclose(row, train(peak, warmup), rtol=1e-5, atol=1e-7)
    assert jnp.isfinite(jax.grad(lambda peak: train(peak, 2.0).sum())(0.1))


PLATEAU = [
    {},
    {"factor": 0.5, "patience": 2},
    {"factor": 0.5, "patience": 2, "cooldown": 3},
    {"factor": 0.3, "patience": 1, "accumulation_size": 3},
    {"factor": 0.3, "patience": 2, "rtol": 0.2, "atol": 0.05, "min_scale": 0.05},
    {"factor": 0.9, "patience": 3, "rtol": 0.0, "atol": 0.1, "cooldown": 1, "accumulation_size": 2},
]
LOSSES = np.exp(-np.arange(120) / 15) + 0.3 * np.random.default_rng(0).uniform(size=120)


def scales(transformation):
    def step(state, loss):
        updates, state = transformation.update({"w": jnp.ones(2)}, state, value=loss)
        return state, (updates["w"][0], state)

    state = transformation.init({"w": jnp.ones(2)})
    return jax.lax.scan(step, state, jnp.asarray(LOSSES, jnp.float32))[1]


@pytest.mark.usefixtures("nan_is_meant")  # Optax starts with infinity
@pytest.mark.parametrize(
    "numbers", [*(pytest.param(numbers, marks=pytest.mark.slow) for numbers in PLATEAU[:-1]), PLATEAU[-1]]
)
def test_reduce_on_plateau_equals_optax(numbers):
    ours, our_states = scales(schedules.reduce_on_plateau(**numbers))
    theirs, their_states = scales(optax.contrib.reduce_on_plateau(**numbers))
    assert len(np.unique(theirs)) > 1  # the losses make it shrink
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    none_yet = their_states.best_value == jnp.inf  # ours is finite, so that `jax_debug_infs` finds nothing in it
    assert (our_states.best_value[none_yet] == jnp.finfo(jnp.float32).max).all()
    their_states = their_states._replace(best_value=jnp.where(none_yet, our_states.best_value, their_states.best_value))
    for mine, other in zip(our_states, their_states, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)


def torch_scales(losses, **numbers):
    """Return the scales of PyTorch's scheduler, whose patience is one less, for these losses."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **numbers)
    found = []
    for loss in losses:
        scheduler.step(loss)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def by_rule(losses, factor, patience, rtol=0.0, atol=0.0):
    """Return what the rule `best − rtol |best| − atol` gives for the losses, in float64."""
    best, waited, scale, found = np.inf, 0, 1.0, []
    for loss in losses:
        improved = loss < (best if best == np.inf else best - rtol * abs(best) - atol)
        best, waited = (loss, 0) if improved else (best, waited + 1)
        if waited >= patience:
            scale, waited = scale * factor, 0
        found.append(scale)
    return found


SIGNS = {
    "constant and negative": -np.ones(12),
    "constant and zero": np.zeros(12),
    "rising from below": -10 * (1 - 0.9e-2) ** np.arange(30),
    "falling through zero": np.linspace(1, -1, 30) + 0.4 * np.sin(np.arange(30)),
    "falling below zero": -1 - np.linspace(0, 1, 30) ** 0.3,
}


@pytest.mark.parametrize("name", SIGNS)
def test_reduce_on_plateau_knows_the_sign_of_the_losses(name):
    losses = SIGNS[name]
    for options in ({"rtol": 0.01}, {"atol": 0.02}, {"rtol": 0.01, "atol": 0.02}):
        transformation = schedules.reduce_on_plateau(factor=0.5, patience=3, **{"rtol": 0.0, **options})
        state, found = transformation.init(jnp.zeros(1)), []
        update = jax.jit(lambda state, loss, apply=transformation.update: apply(jnp.ones(1), state, value=loss)[1])
        for loss in losses:
            state = update(state, jnp.float32(loss))
            found.append(float(state.scale))
        np.testing.assert_allclose(found, by_rule(losses, 0.5, 3, **options))
        if list(options) == ["atol"] or (list(options) == ["rtol"] and (losses > 0).all()):
            kind = {"threshold": 0.02, "threshold_mode": "abs"}
            np.testing.assert_allclose(found, torch_scales(losses, factor=0.5, patience=2, **kind))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.usefixtures("nan_is_meant")  # Optax starts with infinity
def test_reduce_on_plateau_maps_over_every_number():
    defaults = {
        "factor": 0.1,
        "patience": 10,
        "rtol": 1e-4,
        "atol": 0.0,
        "cooldown": 0,
        "accumulation_size": 1,
        "min_scale": 0.0,
    }
    rows = [{**defaults, **numbers} for numbers in PLATEAU]
    stacked = {name: jnp.array([row[name] for row in rows], jnp.float32) for name in defaults}
    mapped = jax.jit(jax.vmap(lambda numbers: scales(schedules.reduce_on_plateau(**numbers))[0]))(stacked)
    for row, numbers in zip(mapped, PLATEAU, strict=True):
        np.testing.assert_allclose(row, scales(optax.contrib.reduce_on_plateau(**numbers))[0], rtol=1e-5)


def test_reduce_on_plateau_is_differentiable_in_the_factor():
    def last(factor):
        return scales(schedules.reduce_on_plateau(factor, patience=2))[0][-1]

    times = np.log(last(0.5)) / np.log(0.5)
    assert times > 1.5
    assert jax.grad(last)(0.5) == pytest.approx(times * 0.5 ** (times - 1), rel=1e-4)


def test_reduce_on_plateau_keeps_the_dtype_of_the_updates():
    transformation = schedules.reduce_on_plateau(factor=jnp.float32(0.5))
    updates = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    scaled, _ = transformation.update(updates, transformation.init(updates), value=1.0)
    assert [leaf.dtype for leaf in jax.tree.leaves(scaled)] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: schedules.polynomial(-1.0, 0.0, 5), "start"),
        (lambda: schedules.polynomial(1.0, -1.0, 5), "end"),
        (lambda: schedules.polynomial(1.0, 0.0, 0), "total_steps"),
        (lambda: schedules.polynomial(1.0, 0.0, 5, power=0.0), "power"),
        (lambda: schedules.exponential_decay(1.0, 0, 0.5), "transition_steps"),
        (lambda: schedules.exponential_decay(1.0, 5, 0.0), "decay_rate"),
        (lambda: schedules.warmup_cosine(0.0, 2, 5), "peak"),
        (lambda: schedules.warmup_cosine(1.0, 6, 5), "warmup_steps"),
        (lambda: schedules.warmup_cosine(1.0, -1, 5), "warmup_steps"),
        (lambda: schedules.warmup_cosine(1.0, jnp.ones(2), 5), "warmup_steps"),
        (lambda: schedules.one_cycle(1.0, 5, pct_start=1.1), "pct_start"),
        (lambda: schedules.one_cycle(1.0, 5, div_factor=0.0), "div_factor"),
        (lambda: schedules.one_cycle(1.0, 5, final_div_factor=jnp.nan), "final_div_factor"),
        (lambda: schedules.reduce_on_plateau(factor=1.0), "factor"),
        (lambda: schedules.reduce_on_plateau(patience=0), "patience"),
        (lambda: schedules.reduce_on_plateau(rtol=1.0), "rtol"),
        (lambda: schedules.reduce_on_plateau(atol=-1.0), "atol"),
        (lambda: schedules.reduce_on_plateau(cooldown=-1), "cooldown"),
        (lambda: schedules.reduce_on_plateau(accumulation_size=0), "accumulation_size"),
        (lambda: schedules.reduce_on_plateau(min_scale=2.0), "min_scale"),
    ],
)
def test_a_number_out_of_range_is_named(make, name):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        make()


def test_reduce_on_plateau_asks_for_the_loss():
    transformation = schedules.reduce_on_plateau()
    state = transformation.init(jnp.ones(2))
    with pytest.raises(TypeError, match=r"^value: expected the loss"):
        transformation.update(jnp.ones(2), state)
    with pytest.raises(ValueError, match=r"^value: expected one number"):
        transformation.update(jnp.ones(2), state, value=jnp.ones(2))


def test_a_staircase_goes_down_at_whole_multiples_exactly():
    """All lengths up to 20,000 and their multiples up to 100, compared with integers on the host."""

    @jax.jit
    def stairs(length, step):
        def one(length, step):
            return -jnp.log2(schedules.exponential_decay(1.0, length, 0.5, staircase=True)(step))

        return jax.vmap(one)(length, step)

    for first in (1, 10_001):
        length, times = (a.ravel() for a in np.meshgrid(np.arange(first, first + 10_000), np.arange(1, 101)))
        for before in (0, 1):
            step = length * times - before
            expected = np.where((step == 0) | (length == 1), times - before, times - (before > 0))
            np.testing.assert_array_equal(stairs(jnp.asarray(length), jnp.asarray(step)).round(), expected)
            if first == 1:
                as_floats = stairs(jnp.asarray(length, jnp.float32), jnp.asarray(step, jnp.float32))
                np.testing.assert_array_equal(as_floats.round(), expected)


@pytest.mark.parametrize("length", [41, np.int64(235), 391.0, np.float32(1563)])
def test_a_staircase_of_fixed_length_compiled_and_not(length):
    rate = schedules.exponential_decay(1.0, length, 0.5, staircase=True)
    steps = (np.arange(1, 20) * int(length))[:, None] - np.array([[1, 0]])
    expected = 0.5 ** (steps // int(length))
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(rate)))(jnp.asarray(steps)), expected, rtol=1e-6)
    np.testing.assert_allclose([rate(step) for step in steps[0].tolist()], expected[0], rtol=1e-6)


@pytest.mark.parametrize("total", [41, *(pytest.param(total, marks=pytest.mark.slow) for total in (83, 1563)), 20_000])
def test_schedules_meet_their_closed_forms_at_their_boundaries(total):
    """The same in float64, at and near the first and the last step."""
    steps = np.array([0, 1, total - 1, total, total + 1])
    done = np.clip(steps / total, 0, 1)

    def compiled(rate):
        return np.asarray(jax.jit(jax.vmap(rate))(jnp.asarray(steps)))

    for power in (0.5, 1.0, 3.0):
        expected = 0.3 * np.clip((total - steps) / total, 0, 1) ** power
        np.testing.assert_allclose(compiled(schedules.polynomial(0.3, 0.0, total, power)), expected, rtol=1e-6)
    expected = np.where(steps <= total, 0.3 * done, 0.3)
    np.testing.assert_allclose(
        compiled(schedules.warmup_cosine(0.3, total, 2 * total, 0.1))[:4], expected[:4], rtol=1e-6
    )
    np.testing.assert_array_equal(compiled(schedules.warmup_cosine(0.3, 0, total, 0.1))[3:], np.float32(0.1))
    cycle = compiled(schedules.one_cycle(0.3, 2 * total, 0.5))
    assert cycle[3] == cycle.max() == np.float32(0.3)


def test_a_warm_up_as_long_as_the_schedule():
    with pytest.raises(ValueError, match="warmup_steps: expected a finite number at least 0 and below 5, got 5"):
        schedules.warmup_cosine(1.0, warmup_steps=5, total_steps=5)

    @jax.jit
    def rates(warmup_steps):
        return jax.vmap(schedules.warmup_cosine(1.0, warmup_steps, 5, 0.25))(jnp.arange(8))

    np.testing.assert_allclose(rates(5.0), [0, 0.2, 0.4, 0.6, 0.8, 1, 0.25, 0.25], rtol=1e-6)
