"""DPM-Solver++(2M): a solver of second order that remembers the estimate of the step before."""

import math

from dbpkit.purification.samplers import Chain, level, samplers


@samplers.register("dpm_solver")
class DPMSolver(Chain):
    """DPM-Solver++(2M); only the forward noise is random, and each step calls the network once.

    Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2, where lambda = -log sigma.
    """

    sites = frozenset({"forward"})

    def step(self, denoiser, state, i, noise):
        (x, *memory), (sigma, sigma_next) = state, self.levels[i : i + 2]
        x0 = mixed = denoiser(x, level(sigma, x))
        if memory and sigma_next > 0:  # the first step and the last are of first order
            r = math.log(self.levels[i - 1] / sigma) / math.log(sigma / sigma_next)
            mixed = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * memory[0]
        shrink = sigma_next / sigma  # e^-h
        return shrink * x + (1 - shrink) * mixed, x0
