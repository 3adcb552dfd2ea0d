"""The networks' weights in what a file holds: which tables of tensors there are, and under which names.

The thing people get wrong: averaged weights that are a list without names. They are in the order of the
trained parameters, so every other tensor of the network is left out before they are told apart, and shapes
are compared one by one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dbpkit.foundation.checkpoints import Record, Stored

WRAPPERS = ("module.", "model.", "_orig_mod.", "net.", "network.", "0.", "1.")
"""What wrappers put before the names of all tensors of a network."""

AVERAGED = re.compile(
    r"(.*[._])?(ema|ema_model|model_ema|net_ema|params_ema|ema_state_dict|shadow|average)\d*"
)
"""Names of places in a file where averaged weights lie."""

_WHOLE = re.compile(r"net|model|ema|net_ema\d*|model_ema|ema_model|online|target|student|teacher")
"""First parts of names that stand for a whole network, where a table of tensors holds several."""

_NORMALISER = re.compile(r"(?:(?:normali[sz]\w*|norm_layer|0)\.)?(mean|std|mu|sigma|m|s)")
"""Names of what a normaliser in front of a classifier holds."""

_STEPS = ("step", "global_step", "optimization_step", "num_updates", "iteration", "cur_nimg", "epoch")

_DEEPEST = 5


class Weights(NamedTuple):
    """A network's tensors in a file.

    Attributes:
        tensors: by name, without what wrappers put before all names.
        place: where in the file, such as ``ema``; empty for the file itself.
        averaged: whether the place is one of averaged weights.
        aside: tensors of no layer, such as a normaliser's ``mean``.
        classes: names of the classes of pickled modules, by their path in the network; empty for others.
        settings: stored arguments of the network, by the path of the module that they are of.
        nameless: averaged tensors without names, in the order of the trained parameters.
    """

    tensors: Mapping[str, Stored]
    place: str = ""
    averaged: bool = False
    aside: Mapping[str, Stored] = {}
    classes: Mapping[str, str] = {}
    settings: Mapping[str, Mapping[str, Any]] = {}
    nameless: Sequence[Stored] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: tuple(t.shape) for name, t in self.tensors.items()}


def weights_in(content: Any) -> list[Weights]:
    """Returns every network's weights that a file's content holds, averaged ones first."""
    found = [part for place, table in _tables(content, "", 0) for part in _parts(place, table)]
    found += _nameless(content, found)
    return sorted(found, key=lambda weights: (not weights.averaged, weights.place.count(".")))


def step_of(content: Any) -> tuple[str, int] | None:
    """Returns what a file calls its progress, and how far it got; None if it does not say."""
    tables = [content, *content.values()] if isinstance(content, Mapping) else []
    for table in tables:
        for name in _STEPS if isinstance(table, Mapping) else ():
            value = table.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return name, value
    return None


def named(names: Sequence[str], weights: Weights, shadow: Sequence[Stored]) -> dict[str, Stored] | None:
    """Returns averaged tensors by name, or None where they do not fit the names.

    Args:
        names: trained parameters in their order.
        weights: the network's other tensors, which name the shapes.
        shadow: as many tensors without names.
    """
    if len(names) != len(shadow):
        return None
    pairs = dict(zip(names, shadow, strict=True))
    fits = all(tuple(t.shape) == tuple(weights.tensors[n].shape) for n, t in pairs.items())
    return {**weights.tensors, **pairs} if fits else None


def _tables(content: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Every table of tensors and every pickled module, with the place where it lies."""
    if depth > _DEEPEST:
        return
    if isinstance(content, Record):
        if module_state(content) is not None:
            yield place, content
            return
        content = content.state
    if isinstance(content, Mapping):
        if _is_table(content):
            yield place, content
            return
        inside = [(str(key), value) for key, value in content.items() if not str(key).startswith("optim")]
    elif isinstance(content, list | tuple) and len(content) <= 16:
        inside = [(str(i), value) for i, value in enumerate(content)]
    else:
        return
    for key, value in inside:
        yield from _tables(value, f"{place}.{key}" if place else key, depth + 1)


def _is_table(content: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is a state dict: texts to tensors, and hardly anything else."""
    tensors = sum(isinstance(value, Stored) for value in content.values())
    return tensors > 0 and 2 * tensors > len(content) and all(isinstance(key, str) for key in content)


def _parts(place: str, table: Any) -> Iterator[Weights]:
    """The networks of one table of tensors: several, if the first parts of its names are theirs."""
    classes: dict[str, str] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    if isinstance(table, Record):
        tensors = dict(_module_tensors(table, "", classes, settings))
    else:
        tensors = {name: value for name, value in table.items() if isinstance(value, Stored)}
    loose = {name: t for name, t in tensors.items() if "." not in name or _NORMALISER.fullmatch(name)}
    layers = {name: t for name, t in tensors.items() if name not in loose}
    groups = {name.partition(".")[0] for name in layers}
    if len(groups) > 1 and all(_WHOLE.fullmatch(group) for group in groups):
        for group in sorted(groups):
            inside = {n.removeprefix(f"{group}."): t for n, t in layers.items() if n.startswith(f"{group}.")}
            where = f"{place}.{group}" if place else group
            yield _stripped(Weights(inside, where, bool(AVERAGED.fullmatch(group)), loose))
    elif layers:
        yield _stripped(Weights(layers, place, bool(AVERAGED.fullmatch(place)), loose, classes, settings))


def _stripped(weights: Weights) -> Weights:
    """Weights without what wrappers put before all names."""
    tensors, classes, settings = dict(weights.tensors), dict(weights.classes), dict(weights.settings)
    while prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
        inner = prefix[:-1]
        classes = {_below(path, inner): name for path, name in classes.items()}
        settings = {_below(path, inner): table for path, table in settings.items()}
    return weights._replace(tensors=tensors, classes=classes, settings=settings)


def _below(path: str, outer: str) -> str:
    """A module's path below another; what lies above is marked by a dot for every floor."""
    if path.startswith(f"{outer}."):
        return path.removeprefix(f"{outer}.")
    return "" if path == outer else f".{path}"


def _nameless(content: Any, found: Sequence[Weights]) -> Iterator[Weights]:
    """Averaged weights that are a list, each with the names of every network that lies beside it."""
    places = [("", content), *(content.items() if isinstance(content, Mapping) else ())]
    for place, table in places:
        table = table.state if isinstance(table, Record) else table
        shadow = table.get("shadow_params") if isinstance(table, Mapping) else None
        if isinstance(shadow, list | tuple) and shadow and all(isinstance(t, Stored) for t in shadow):
            beside = [w for w in found if not w.averaged] or [Weights({})]
            for weights in beside:
                yield weights._replace(place=str(place) or "ema", averaged=True, nameless=shadow)


# ------------------------------------------------------------------ pickled modules


def module_state(record: Record) -> Mapping[str, Any] | None:
    """Returns what a pickled ``torch.nn.Module`` holds, or None if the object is another.

    EDM's persistent objects have it, like their class, in the one argument that they are made from.
    """
    described = record.arguments[0] if record.arguments else None
    inner = described.get("state") if isinstance(described, Mapping) else None
    for state in (record.state, inner):
        if isinstance(state, Mapping) and isinstance(state.get("_parameters"), Mapping):
            return state
    return None


def class_name(record: Record) -> str:
    """Returns the last part of the name of an object's class."""
    described = record.arguments[0] if record.arguments else None
    if isinstance(described, Mapping) and isinstance(described.get("class_name"), str):
        return str(described["class_name"])
    return record.name.rpartition(".")[2]


def _module_tensors(
    record: Record, path: str, classes: dict[str, str], settings: dict[str, Mapping[str, Any]]
) -> Iterator[tuple[str, Stored]]:
    """The state dict of a pickled module, as `torch.nn.Module.state_dict` would name it."""
    state = module_state(record)
    if state is None or path.count(".") > 16:
        return
    classes[path] = class_name(record)
    if isinstance(state.get("_init_kwargs"), Mapping):
        settings[path] = state["_init_kwargs"]
    before = f"{path}." if path else ""
    left_out = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        table = state.get(kind)
        for name, tensor in table.items() if isinstance(table, Mapping) else ():
            if isinstance(tensor, Stored) and not (kind == "_buffers" and name in left_out):
                yield f"{before}{name}", tensor
    inside = state.get("_modules")
    for name, part in inside.items() if isinstance(inside, Mapping) else ():
        if isinstance(part, Record):
            yield from _module_tensors(part, f"{before}{name}", classes, settings)
