"""Tests paths, cross-validation and estimators, against scikit-learn's. The optimizers that they use are not tested here but in
`tests/optim`.
"""
