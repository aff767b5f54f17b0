"""Divides a model's parameters into those to penalise and the rest, and says why each is where it is."""

from regkernels.param_groups.groups import param_groups
from regkernels.param_groups.table import ParamGroups

__all__ = ["ParamGroups", "param_groups"]
