"""Paths, cross-validation and estimators, against scikit-learn's. Not the optimizers that they use."""
