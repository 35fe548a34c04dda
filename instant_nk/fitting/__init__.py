"""Optimisation: training loops, registration, the solver, baking. Knows models, files and geometry; no stages, no pictures of results."""
