"""A sampler from its name, its grid and its options, each checked."""

from collections.abc import Callable, Mapping
from inspect import isabstract
from typing import Any

from torch import Tensor

from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.options import Option, call_with_options, checked_options, options_of
from dbpkit.foundation.times import StartTime, middle, read_start
from dbpkit.purification.samplers.chain import GIVEN, Chain, samplers
from dbpkit.purification.samplers.drawn import Drawn, drawn_levels, following
from dbpkit.purification.samplers.functions import FunctionSampler, Method, as_method

RESERVED = ("t_star", "steps")
"""Arguments of a grid that have a place of their own in a spec."""

TABLE = "table"
"""Argument of a grid that walks the denoiser's own discrete times: their noise levels, (T,)."""


RANDOM = "random"
"""Argument of every grid that has none of this name: whether its inner levels are drawn, see `Drawn`."""


def make_sampler(
    name: str,
    t_star: StartTime = 0.1,
    steps: int = 1000,
    options: Mapping[str, Any] | None = None,
    grid: Mapping[str, Any] | None = None,
    table: Tensor | None = None,
) -> Chain:
    """Makes a sampler with its levels and options.

    Args:
        name: registered name, or import path of a `Chain` or of a sampler function.
        t_star: diffusion time where purification starts, in (0, 1); of two, an interval, each image and draw
            draws its own, see `Drawn`.
        steps: S of the sampler's published grid.
        options: its fields (``eta``, ``variance``, ``clip``, ...).
        grid: further keyword arguments of the grid (``sigma_max``, ...); ``random = true`` draws its inner
            levels, see `Drawn`.
        table: noise levels (T,) of the denoiser's own discrete times, increasing, for grids that walk them;
            unset is the linear DDPM schedule.

    Raises:
        UserError: if a name or an option is unknown, or the levels do not decrease to 0.
    """
    part, what = samplers.resolve(name), f"sampler '{name}'"
    if isinstance(part, type) and issubclass(part, Chain):
        chosen = checked_options(part, options or {}, what, GIVEN)
        levels, found = _found(part.grid, t_star, steps, grid, name, table)
        if isabstract(part):
            raise UserError(f"{what} has no method step(denoiser, state, i, noise). Give it one.")
        made = part(tuple(levels.tolist()), **chosen)
        if found is None:
            return made
        if not part.by_row:
            raise UserError(
                f"{what} walks the same levels for all images. Give one t_star and no random grid, or write"
                " it for columns and set by_row (docs/how-to/sampler.md)."
            )
        return Drawn(made.levels, made, found)
    method = as_method(part, name)
    chosen = checked_options(method.sample, options or {}, what, method.given)
    levels, found = _found(method.levels, t_star, steps, grid, name, table)
    if found is not None:
        raise UserError(f"{what} is a function, which has one grid for all images. Write it as a Chain.")
    return FunctionSampler(tuple(levels.tolist()), method, chosen, levels)


def sampler_options(part: Any) -> tuple[dict[str, Option], dict[str, Option]]:
    """Returns the options of a registered sampler and those of its grid, by name."""
    if isinstance(part, type) and issubclass(part, Chain):
        grid = options_of(part.grid, (*RESERVED, TABLE))
        drawn = {RANDOM: _RANDOM_OPTION} if part.by_row and RANDOM not in grid else {}
        return options_of(part, GIVEN), grid | drawn
    method = part if isinstance(part, Method) else Method(part)
    return options_of(method.sample, method.given), options_of(method.levels, (*RESERVED, TABLE))


def check_levels(levels: Tensor, name: str) -> None:
    """Raises UserError unless ``levels`` (S + 1,) decrease strictly to 0."""
    if (
        levels.ndim != 1
        or len(levels) < 2
        or bool((levels[1:] >= levels[:-1]).any())
        or float(levels[-1]) != 0
    ):
        raise UserError(f"sampler '{name}': noise levels must decrease strictly to 0, got {levels.tolist()}.")


_RANDOM_OPTION = Option(RANDOM, bool, False, "whether the levels between the first and the last are drawn.")


def _found(
    grid: Callable[..., Tensor],
    t_star: StartTime,
    steps: int,
    options: Mapping[str, Any] | None,
    name: str,
    table: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """A sampler's levels (S + 1,), those of the middle of an interval; and what is drawn, see `Drawn`."""
    try:
        t_star = read_start(t_star)
    except ValueError as error:
        raise UserError(
            f"t_star must be a time in (0, 1) or an interval of two, not {shown(t_star)}."
        ) from error
    if not isinstance(options or {}, Mapping):
        raise UserError(f"the grid of sampler '{name}' must be a table of names and values.")
    own = dict(options or {})
    random = False if RANDOM in options_of(grid) else own.pop(RANDOM, False)
    if not isinstance(random, bool):
        raise UserError(f"the grid of sampler '{name}': random must be true or false, not {shown(random)}.")

    def levels_at(t: float) -> Tensor:
        return _levels(grid, t, steps, own, name, table)

    levels = levels_at(middle(t_star))
    if isinstance(t_star, float) and not random:
        return levels, None
    walked = following(table) if TABLE in options_of(grid) else None
    return levels, drawn_levels(levels, t_star, random, levels_at, walked, f"sampler '{name}'")


def _levels(
    grid: Callable[..., Tensor],
    t_star: float,
    steps: int,
    options: Mapping[str, Any] | None,
    name: str,
    table: Tensor | None,
) -> Tensor:
    """The noise levels of a sampler's grid, (S + 1,)."""
    for reserved in RESERVED:
        if reserved in (options or {}):
            raise UserError(
                f"the grid of sampler '{name}' has no option '{reserved}'. Give it beside the grid."
            )
    if TABLE in (options or {}):
        raise UserError(f"the grid of sampler '{name}' has no option 'table'. It comes from the denoiser.")
    settings = {"t_star": t_star, "steps": steps, **(options or {})}
    if table is not None and TABLE in options_of(grid):
        settings[TABLE] = table
    levels: Tensor = call_with_options(grid, settings, f"the grid of sampler '{name}'")
    check_levels(levels, name)
    return levels
