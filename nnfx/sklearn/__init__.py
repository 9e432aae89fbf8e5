"""Estimators and a hyper-parameter search that follow the conventions of scikit-learn.

They are used wherever scikit-learn's own are: in pipelines, in searches, and with its splitters and scorers. Install
the extra `sklearn` for them; `import nnfx` alone does not import scikit-learn. There is no forecaster among them:
scikit-learn predicts a target for each row that is given, in whatever order, whereas a forecast continues an ordered
series past its end; `nnfx.forecasting` does that.
"""

try:
    import sklearn
except ImportError as error:
    raise ImportError("nnfx.sklearn: expected scikit-learn; install it with pip install 'nnfx[sklearn]'") from error

from nnfx.sklearn.classifier import Classifier
from nnfx.sklearn.regressor import Regressor
from nnfx.sklearn.search import SweepSearchCV

del sklearn

__all__ = ["Classifier", "Regressor", "SweepSearchCV"]
