"""Which parameters `regkernels.param_groups` penalises, what it says of them, and what optimizers do with the groups."""
