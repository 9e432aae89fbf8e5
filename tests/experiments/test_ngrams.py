import collections
import itertools

import numpy as np
import pytest

from experiments import ngrams

RNG = np.random.default_rng(0)
VOCABULARY = 4
# a chain in which some tokens hardly follow others
CHAIN = RNG.dirichlet(np.full(VOCABULARY, 0.4), size=VOCABULARY)


def drawn(count):
    tokens = [0]
    for _ in range(count - 1):
        tokens.append(int(RNG.choice(VOCABULARY, p=CHAIN[tokens[-1]])))
    return np.array(tokens)


TRAIN, TUNE = drawn(150), drawn(80)


def probability(kind, order, weights, context, token):
    """The definition, with dictionaries of tuples: the probability of a token after a context."""
    if order == 0:
        return 1 / VOCABULARY
    train = tuple(TRAIN.tolist())
    grams = collections.Counter(train[i : i + order] for i in range(len(train) - order + 1))
    if kind == "Kneser–Ney" and order < len(weights):
        longer = {train[i : i + order + 1] for i in range(len(train) - order)}
        grams = collections.Counter(gram[1:] for gram in longer)
    context = context[len(context) - order + 1 :]
    after = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == context}
    lower = probability(kind, order - 1, weights, context[1:], token)
    if not after:
        return lower
    total, weight = sum(after.values()), weights[order - 1]
    if kind == "Jelinek–Mercer":
        return weight * after.get(token, 0) / total + (1 - weight) * lower
    return max(after.get(token, 0) - weight, 0) / total + weight * len(after) / total * lower


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("kind", ["Kneser–Ney", "Jelinek–Mercer"])
def test_bits_are_those_of_the_definition(kind, order):
    model = ngrams.fit(kind, order, VOCABULARY, TRAIN, TUNE)
    tokens = tuple(TUNE.tolist())
    for i, bits in list(enumerate(model.bits(TUNE), start=1))[order:40]:
        expected = -np.log2(probability(kind, order, model.weights, tokens[i - order + 1 : i], tokens[i]))
        assert bits == pytest.approx(expected, rel=1e-9)
    for known in range(1, order):  # the first targets have too few tokens before them for the highest orders
        shorter = ngrams.Model(kind, VOCABULARY, model.tables[: known + 1], model.weights[: known + 1])
        assert model.bits(TUNE)[known - 1] == shorter.bits(TUNE)[known - 1]


@pytest.mark.parametrize("kind", ["Kneser–Ney", "Jelinek–Mercer"])
def test_probabilities_of_all_tokens_sum_to_one(kind):
    model = ngrams.fit(kind, 3, VOCABULARY, TRAIN, TUNE)
    for context in itertools.product(range(VOCABULARY), repeat=2):
        bits = [model.bits(np.array([*context, token]))[-1] for token in range(VOCABULARY)]
        assert (2.0 ** -np.array(bits)).sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("kind", ["Kneser–Ney", "Jelinek–Mercer"])
def test_no_weights_of_a_grid_are_better_than_those_chosen(kind):
    model = ngrams.fit(kind, 2, VOCABULARY, TRAIN, TUNE)
    best = model.bits(TUNE).mean()
    for weights in itertools.product(np.linspace(0.01, 0.99, 15), repeat=2):
        assert best < model._replace(weights=np.array(weights)).bits(TUNE).mean() + 1e-4


def test_codes_are_numbers_whose_digits_are_tokens():
    assert ngrams.codes(np.array([1, 2, 3, 0]), 3, 10).tolist() == [123, 230]
