"""More than one run at a time: sweeps over seeds, hyper-parameters and folds."""
