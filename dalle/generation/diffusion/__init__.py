"""Gaussian diffusion as pure functions: parametrizations, samplers and inversion. Knows no networks.

Notation, the same everywhere: x_0 is data, epsilon unit Gaussian noise, and x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) epsilon
with the alpha-bar a_t of step t, which falls from nearly 1 at t = 0 to nearly 0 at the last step.
"""
