"""Networks without their zeros, and reports of zeros. Not how the zeros come about."""
