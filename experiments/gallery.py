"""The course in order, one idea per row; `python -m experiments` makes all of its figures."""

import shlex
from typing import NamedTuple

PART = {"memory": "--tasks adding"}
"""Options that select one part of a long experiment."""


class Row(NamedTuple):
    """An idea of the course.

    Attributes:
        title: the title of the row.
        says: the idea, in a sentence or two.
        experiment: the module of `experiments` that demonstrates it.
        figure: the name of the figure, without its extension.
        see: what the figure shows.
        numbers: the label of each number to report, and its path in `summary.json`, names separated by slashes.
    """

    title: str
    says: str
    experiment: str
    figure: str
    see: str
    numbers: dict[str, str]

    @property
    def command(self) -> str:
        """The command that makes the figure."""
        return " ".join(["python -m", f"experiments.{self.experiment}", *shlex.split(PART.get(self.experiment, ""))])

    @property
    def copy(self) -> str:
        """The name of the small copy of the figure that is kept in `experiments/figures`."""
        return f"{self.experiment}_{self.figure}.png"


ROWS = (
    Row(
        "Why deep?",
        "Hand-made features capture what their designer thought of. Layers learn features from the data, each from"
        " the features of the layer below: edges, then parts, then objects.",
        "learned_features",
        "probes",
        "The same linear classifier recognises digits from raw pixels, hand-made histograms of gradients, and"
        " each layer. Its accuracy rises layer by layer; hand-made features match the first layer, and untrained"
        " layers fall behind.",
        {"HOG": "probes/HOG/mean", "layer 3": "probes/conv_2, trained/mean"},
    ),
    Row(
        "The perceptron's three steps",
        "A perceptron multiplies its inputs by weights and adds them up, adds a bias, and passes the sum through a"
        " non-linearity: g(w·x + b).",
        "perceptron",
        "three_steps",
        "Left, where each number comes from; right, the same steps on the sigmoid: the dot product, shifted by the"
        " bias, then mapped onto the curve.",
        {"w·x": "steps/dot product", "z": "steps/with bias", "g(z)": "steps/sigmoid"},
    ),
    Row(
        "Activation functions and their derivatives",
        "The non-linearity determines what passes forward, and its derivative what passes back. Maxout learns its"
        " shape from straight pieces.",
        "activations",
        "activations",
        "The sigmoid's derivative is at most a quarter, so little of the gradient gets through many layers; ReLU's"
        " is zero or one. Finite differences (dots) lie on the derivatives computed by JAX.",
        {"through ten sigmoids": "activations/sigmoid/left", "ten ReLUs": "activations/relu/left"},
    ),
    Row(
        "Linear decisions",
        "Without a non-linearity, the product of all layers is a single matrix. However deep the network, it is"
        " equivalent to one perceptron, and divides the plane by one straight line.",
        "perceptron",
        "linear_decisions",
        "Two hidden layers without a non-linearity separate two clouds well. Where classes lie across or around each"
        " other, no line separates them.",
        {"exclusive or": "right/identity/exclusive or", "a ring": "right/identity/a ring"},
    ),
    Row(
        "Why non-linearity?",
        "With a non-linearity between them, layers no longer collapse into one: boundaries bend, and enough units"
        " approximate any function as closely as needed.",
        "perceptron",
        "nonlinearity",
        "The networks of the figure above, with tanh in their hidden layers and nothing else changed: the line becomes"
        " curves that fit the classes.",
        {"exclusive or": "right/tanh/exclusive or", "a ring": "right/tanh/a ring"},
    ),
    Row(
        "One line in two dimensions",
        "With two inputs, w·x + b = 0 is a line. The sign of w·x + b tells on which side of the line a point lies,"
        " and its magnitude tells how far away. The sigmoid turns both into a probability.",
        "perceptron",
        "line",
        "The perceptron g(1 + 3x₁ − 2x₂): one half on the line, approaching 0 and 1 on its two sides.",
        {"g at (1, 1)": "steps/sigmoid"},
    ),
    Row(
        "Several outputs, and deep networks",
        "Perceptrons side by side give several outputs; perceptrons in sequence form layers, each reading the"
        " outputs of the one before.",
        "perceptron",
        "deep_networks",
        "Three spirals: a perceptron with three outputs has straight boundaries, one hidden layer of eight units bends"
        " them, and two hidden layers wind them along the spirals.",
        {"no hidden layer": "spirals/perceptron/accuracy", "two": "spirals/2 hidden/accuracy"},
    ),
    Row(
        "Who survives the Titanic?",
        "The whole course in one problem: a table of passengers, a network, a loss, training, and a score on unseen"
        " passengers.",
        "titanic",
        "decision_regions",
        "By fare and age alone: a perceptron draws one line, as does a network without a non-linearity, and tanh"
        " bends it. Those who paid more survived more often; much remains unexplained.",
        {"accuracy": "perceptron/accuracy", "ROC AUC": "perceptron/auc"},
    ),
    Row(
        "Empirical loss, cross-entropy, mean square error",
        "A loss measures how wrong one prediction is: cross-entropy for probabilities, the squared error for"
        " numbers. The empirical loss is its mean over the examples, which training minimises.",
        "losses",
        "losses",
        "Above, both losses and their derivatives: where a network is confidently wrong, cross-entropy pulls"
        " hardest, and the squared error hardly at all. Below, the terms that are averaged: each passenger's loss,"
        " each year's squared error.",
        {"empirical loss": "empirical/all", "mean square": "line/mean square"},
    ),
    Row(
        "Gradient descent on a surface",
        "The loss is a surface over the weights. Its gradient points uphill; steps against it go down.",
        "gradient_descent",
        "paths",
        "Three ways down the true loss of two weights, from one start: with all passengers at each step, the path is"
        " direct; with one at a time, it is erratic.",
        {"lowest": "minimum/loss", "full batch": "paths/full batch/loss"},
    ),
    Row(
        "Backpropagation",
        "The chain rule, from the loss back to every weight: each layer multiplies the error it receives by its own"
        " derivative, and passes it on.",
        "backpropagation",
        "graph_trained",
        "One passenger: values going forward in the nodes, errors coming back below them. Each edge shows its weight"
        " and the gradient of that weight, which is the input times the error that comes back.",
        {"from jax.grad, float32": "differences/float32", "float64": "differences/float64"},
    ),
    Row(
        "The landscape of the loss, and its many minima",
        "A network's loss is not a simple bowl. From different starts, training ends in different valleys, equally"
        " low, with walls between them.",
        "loss_landscape",
        "three_minima",
        "The plane through three solutions of one network, with the paths that led to them: three valleys, and"
        " higher ground on every straight line between them.",
        {"wall, 1 to 2": "walls/1 to 2", "1 to 3": "walls/1 to 3", "2 to 3": "walls/2 to 3"},
    ),
    Row(
        "Learning rates: too small, too large, just right, adaptive",
        "If steps are too small, nothing is learned in the available time; if they are too large, they leap out of"
        " every valley. Adaptive optimizers choose a step for every weight from its past gradients.",
        "learning_rates",
        "loss_by_rate",
        "Eleven optimizers over seven decades of rates: between rates that are too small and too large lies a range"
        " of good rates. Adam's range is about as wide as the range of plain gradient descent, at rates some twenty"
        " times lower.",
        {"best, SGD": "optimizers/SGD/training/best_rate", "Adam": "optimizers/Adam/training/best_rate"},
    ),
    Row(
        "Batch, stochastic, minibatch",
        "The gradient on a few examples is a noisy estimate of the full gradient, and much cheaper: many rough steps"
        " for the price of one exact step.",
        "gradient_descent",
        "cost",
        "Whether measured in passengers visited or in time: single passengers get close to the minimum first, then"
        " wander around it; the full batch is steady but last; minibatches combine the best of both. Right, the cost"
        " of a step.",
        {"steps, B = 1": "paths/stochastic/steps", "B = 32": "paths/minibatch/steps"},
    ),
    Row(
        "Overfitting",
        "A large enough network memorises its examples, noise included, and does worse on other examples.",
        "overfitting",
        "bias_and_variance",
        "The error on held-out passengers, decomposed: as networks widen, or train for longer, bias falls at first;"
        " then variance rises, and the total with it.",
        {
            "train loss": "variants/no regularisation/train_loss/mean",
            "held out": "variants/no regularisation/loss/mean",
        },
    ),
    Row(
        "Dropout",
        "Units that are dropped at random in every step cannot rely on each other, so each learns features that are"
        " useful by themselves.",
        "overfitting",
        "scores",
        "Held-out loss on every split, without regularisation and with three kinds of regularisation: dropout undoes"
        " part of the cost of overfitting.",
        {"held-out loss, none": "variants/no regularisation/loss/mean", "dropout": "variants/dropout 50%/loss/mean"},
    ),
    Row(
        "Early stopping",
        "The held-out loss falls, then rises, while the training loss keeps falling. Stop where the held-out loss is"
        " lowest.",
        "overfitting",
        "learning_curves",
        "Each variant's loss in training and on held-out passengers: without regularisation, they diverge after a"
        " few epochs. The last panel stops soon after, and keeps the weights at the lowest point.",
        {"lowest at epoch": "variants/early stopping/best_epoch/mean", "loss": "variants/early stopping/loss/mean"},
    ),
    Row(
        "Convolution and pooling by hand",
        "A small kernel slides over the image and responds where it finds its pattern, with the same few weights"
        " everywhere; pooling keeps the strongest response in each neighbourhood.",
        "convolution",
        "by_hand",
        "Every number from the pixels to the pooled map; framed, the nine products at one position and the largest"
        " of four sums.",
        {"convolution off by": "differences/convolution", "max pool": "differences/max pool"},
    ),
    Row(
        "What a convolutional network learns",
        "Nobody designs the kernels. The first layer learns to respond to edges, the next to combinations of them,"
        " and the last to features that tell the classes apart.",
        "learned_features",
        "units",
        "For units of each layer: framed, the input that excites them most, found by gradient ascent; beside it, the"
        " digits that excite them most: edges, bends, and most of a digit.",
        {"accuracy of the network": "network/accuracy/mean"},
    ),
    Row(
        "Object identification",
        "Slide a classifier over a whole image at several scales, let windows that agree vote, and keep the best of"
        " those that overlap: this shows what is where.",
        "object_identification",
        "scenes",
        "Digits found and identified among clutter: true boxes are dotted, correct detections blue, and wrong ones"
        " orange.",
        {"F1": "f1", "precision": "precision", "recall": "recall"},
    ),
    Row(
        "Forecasting",
        "The past predicts the future. A recurrent network reads the past step by step and forecasts the years ahead;"
        " it has to beat simple forecasts, such as repeating the last season.",
        "forecast_sunspots",
        "fan",
        "Sunspots eleven years ahead, from an origin beyond which no network has seen data: the networks (thin),"
        " their mean (thick), the interval that should contain nine years in ten (shaded), and the last cycle"
        " repeated (dashed).",
        {"MASE, GRU": "scores/GRU/MASE", "LSTM": "scores/LSTM/MASE", "seasonal naive": "scores/seasonal naive/MASE"},
    ),
    Row(
        "Why gates?",
        "In a simple recurrent network, memories are multiplied at every step, and fade or explode, as do their"
        " gradients. The gates of an LSTM or a GRU decide what to keep, and keep it.",
        "memory",
        "success",
        "Two marked numbers of a sequence must be added at its end. However long the sequence, the simple network"
        " does no better than guessing (dashed); the gated networks are off by a few hundredths.",
        {"of five, LSTM": "solved/adding/LSTM/-1", "GRU": "solved/adding/GRU/-1", "simple": "solved/adding/RNN/-1"},
    ),
    Row(
        "How certain?",
        "A probability is useful only if it is right as often as it claims. Ensembles, dropout and the Laplace"
        " approximation show how much networks that fit equally well disagree; conformal prediction measures errors"
        " on held-out examples, and guarantees a stated coverage for any network.",
        "uncertainty",
        "coverage",
        "Sets of digits, and intervals for patients, that should contain the truth in 19 of 20 cases. Before"
        " calibration (orange), most intervals contain the truth far too rarely. After calibration (blue, purple), the"
        " sets and intervals of every method have the stated coverage, and those that fell short of it are larger.",
        {
            "NLL, one network": "digits/one network/negative_log_likelihood/mean",
            "ensemble": "digits/ensemble/negative_log_likelihood/mean",
            "coverage": "patients/ensemble/own coverage/mean",
            "conformal": "patients/ensemble/conformal coverage/mean",
        },
    ),
    Row(
        "Which character comes next?",
        "A language model predicts how likely each next character is, given those before it. Counting what followed"
        " the last few characters works well. A recurrent network is not limited to the last few characters, and"
        " learns what to remember.",
        "characters",
        "context",
        "Bits per character of held-out sonnets, by the number of preceding characters known. With few preceding"
        " characters, counting is best. But n-grams stop improving at five, since longer ones hardly ever occur twice,"
        " while the network keeps improving.",
        {
            "bits, network": "bits/GRU/test",
            "5-grams, Kneser–Ney": "bits/5-gram, Kneser–Ney/test",
            "Jelinek–Mercer": "bits/5-gram, Jelinek–Mercer/test",
        },
    ),
    Row(
        "Deep linear networks learn one mode after another",
        "Even without a non-linearity, a deep network learns non-linearly: each singular vector of the data follows"
        " its own sigmoid, known in closed form, the strong ones first (Saxe, McClelland and Ganguli 2014).",
        "deep_linear",
        "modes",
        "Lines show gradient descent, and dots the closed form. From weights along the modes (left), they agree"
        " within 1 %; from random weights (right), they nearly agree. Properties that all things share are learned"
        " first, and properties of single things last.",
        {"off by": "off/along_the_modes", "random starts": "off/random_starts/mean/3"},
    ),
    Row(
        "The edge of stability",
        "On a quadratic, gradient descent diverges if the largest eigenvalue of the Hessian exceeds 2 / rate. With a"
        " network it does not: the curvature rises to this bound and stays there (Cohen et al. 2021).",
        "edge_of_stability",
        "sharpness",
        "Whatever the learning rate, the largest eigenvalue settles within a few per cent of 2 / rate (dashed). From"
        " then on, the loss goes up and down, but falls in the long run.",
        {f"bound times, rate {rate}:": f"rates/{i}/ratio" for i, rate in enumerate(("1.5", "2", "3"))},
    ),
    Row(
        "Lazy training and the neural tangent kernel",
        "The wider a network, the less its weights have to move to learn, and the more it trains like its"
        " first-order expansion around the initial weights, whose tangent kernel is constant (Jacot et al. 2018, Lee"
        " et al. 2019).",
        "lazy_training",
        "by_width",
        "After the same training, the difference between a wide network and its linearisation is proportional to"
        " width^−1, as is the change of the kernel; the change of the weights is proportional to width^−1/2. Small"
        " dots are single starts, dashed lines the slopes that theory predicts.",
        {name: f"exponents/{name}/mean" for name in ("outputs", "kernel", "weights")},
    ),
    Row(
        "Double descent",
        "Beyond the width at which a network fits all its examples, noise included, its test error falls again: of"
        " the many solutions, the minimum-norm solution becomes smoother (Belkin et al. 2019, Nakkiran et al. 2020).",
        "double_descent",
        "by_width",
        "The test error falls, rises to a peak where there are as many hidden units as digits, and falls again,"
        " below its lowest value before the peak. A penalty on the norm removes the peak.",
        {"lowest before": "lowest_before/mean", "peak": "peak/mean", "widest": "widest/mean"},
    ),
    Row(
        "Lottery tickets",
        "Most weights of a trained network can be pruned. Those that remain learn nearly as well by themselves,"
        " if they start from their initial values (Frankle and Carbin 2019).",
        "lottery_tickets",
        "by_share",
        "Left, accuracy on held-out digits after rounds of pruning; right, epochs to a given loss. If the remaining"
        " weights are drawn anew, they learn more slowly and end up worse. Thin lines are single starts.",
        {"within a point down to (%)": "smallest/initial", "drawn anew (%)": "smallest/redrawn"},
    ),
    Row(
        "Grokking",
        "A network may generalise long after it has memorised its examples, if something (here, weight decay)"
        " favours the simpler solution (Power et al. 2022, Gromov 2023).",
        "grokking",
        "accuracy",
        "Half of all sums modulo 23 are learned within thirty steps, while none of the other sums is right. These"
        " follow after tens of times as many steps, once the weights have become periodic.",
        {"of five": "grokked", "accuracy on others": "final_accuracy/mean"},
    ),
)

QUICK = {
    "activations": "--epochs 200",
    "backpropagation": "--epochs 20",
    "characters": "--hidden 8 --features 4 --epochs 1 --batch-size 64 --orders 5 --written 20",
    "convolution": "",
    "deep_linear": "--starts 2 --step-size 0.05",
    "double_descent": "--rows 40 --relative-widths 0.5 1 2 --starts 2",
    "edge_of_stability": "--rows 40 --hidden 8 --starts 2 --steps 20 --every 10 --products 4",
    "forecast_sunspots": "--hidden 2 --members 2 --epochs 2 --linear-epochs 2",
    "gradient_descent": "--full-batch-epochs 20 --minibatch-epochs 2 --stochastic-epochs 1 --repeats 1",
    "grokking": "--modulus 5 --width 4 --starts 2 --steps 20",
    "lazy_training": "--rows 4 --widths 4 8 16 --lazy-from 8 --starts 2 --steps 2",
    "learned_features": "--rows 160 --size 8 --field 14 --copies 1 --splits 2 --widths 2 3 4 --epochs 2"
    " --probe-epochs 3 --units 2",
    "learning_rates": "--epochs 4 --lowest 1e-3 --highest 1e3 --rates 7 --seeds 3",
    "loss_landscape": "--hidden 3 --epochs 3 --points 5",
    "losses": "",
    "lottery_tickets": "--hidden 4 --rounds 2 --starts 2 --epochs 1 --batch-size 300",
    "memory": "--gaps 6 --seeds 2 --batch-size 4",
    "object_identification": "--train-scenes 60 --validation-scenes 6 --test-scenes 6 --epochs 2 --width 4"
    " --batch-size 32",
    "overfitting": "--rows 60 --pool 120 --splits 2 --epochs 12 --hidden 8 --widths 1 8 --resamples 3"
    " --learning-rate 0.03 --patience 2",
    "perceptron": "--rows 60 --epochs 5",
    "titanic": "--epochs 3",
    "uncertainty": "--splits 2 --members 2 --draws 3 --hidden 4 --epochs 2",
}
"""The options of each experiment for a quick check that it runs; the figures are then not meaningful."""


def experiments() -> list[str]:
    """Return the names of the experiments, each once, in the order of the course."""
    return list(dict.fromkeys(row.experiment for row in ROWS))


def readme() -> str:
    """Return the gallery as Markdown, with the small copies of its figures."""
    lines = [
        "# The course in figures",
        "",
        "An introduction to deep learning, followed by reproductions of effects from papers, one idea per section: the"
        " idea, the command that demonstrates it, and what the figure shows.",
        "Everything runs offline, on bundled data. One command makes the whole gallery, with each figure as PNG and"
        " SVG, and a table of results:",
        "",
        "```bash",
        "python -m experiments",
        "```",
        "",
        "`python -m experiments --write-readme` also writes this page, with small copies of the figures.",
    ]
    for number, row in enumerate(ROWS, start=1):
        lines += [
            "",
            f"## {number}. {row.title}",
            "",
            row.says,
            "",
            f"![{row.title}](figures/{row.copy})",
            "",
            f"*{row.see}* (`{row.figure}` of `{row.command}`)",
        ]
    return "\n".join(lines) + "\n"
