"""The model: its parameters, its sum over factors, the posterior of the factors, and the file all that is kept in."""
