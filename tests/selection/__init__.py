"""Tests paths, and models that are trained together, against scikit-learn's. The optimizers that they use are not tested here but in
`tests/optim`.
"""
