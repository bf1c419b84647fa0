"""Observers by name: those of this package, entry points of other packages, and those that a program registers.

In YAML and the Launchpad, an observer is a name or a mapping of a name and options; both are checked when they are
declared, not when the run starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias, TypeVar, get_args

from ondine_core.errors import ConfigError
from ondine_core.telemetry.events import Event, Observer
from ondine_core.telemetry.stream import Opened
from ondine_core.types.numbers import is_number
from ondine_core.types.suggestion import did_you_mean

ObserverSpec: TypeAlias = str | Mapping[str, Any] | Observer
"""A name; a mapping with `name` and the options of that observer; or an observer."""

Factory = TypeVar("Factory", bound=Callable[..., Observer])

_GROUP = "ondine.observers"
_BUILT_IN = {
    "langfuse": "ondine_core.telemetry.langfuse:open_langfuse",
    "logging": "ondine_core.telemetry.log:open_log",
    "opentelemetry": "ondine_core.telemetry.otel:open_opentelemetry",
    "prometheus": "ondine_core.telemetry.prometheus:open_prometheus",
}
"""In the form of entry points, and loaded like those when they are named: most steps name none."""
_EVENTS = frozenset(get_args(Event))
_FACTORIES: dict[str, Callable[..., Observer]] = {}


def register_observer(name: str) -> Callable[[Factory], Factory]:
    """Register a function that makes an observer; its keyword arguments are the options that users may set.

    A package can declare such a function as an entry point of the group `ondine.observers` instead.

    Example:
        >>> @register_observer("print")
        ... def open_print(*, prefix: str = "") -> Observer:
        ...     return lambda event: print(prefix, event)
    """
    if not isinstance(name, str):
        raise ConfigError(f"The name of an observer is a {type(name).__name__}; give a text.")

    def register(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return register


def check_observers(specs: Sequence[ObserverSpec]) -> None:
    """Refuse an unknown observer, and options that an observer does not have.

    Raises:
        ConfigError: One is not valid.
    """
    if isinstance(specs, str | Mapping) or not isinstance(specs, Iterable):
        raise ConfigError(f"observers={specs!r} must be a sequence, such as [{specs!r}].")
    for spec in specs:
        if isinstance(spec, str | Mapping):
            _factory_of(spec)
        elif not callable(spec):
            raise ConfigError(f"observers: a {type(spec).__name__} is not a name, a mapping or a function of an event.")
        elif inspect.iscoroutinefunction(spec) or inspect.iscoroutinefunction(type(spec).__call__):
            raise ConfigError(f"observers: {spec!r} is asynchronous, so it would never run; write it with plain def.")


def open_observers(specs: Sequence[ObserverSpec]) -> list[Opened]:
    """Open the observers that `specs` name."""
    all_opened: list[Opened] = []
    with ExitStack() as if_one_fails:
        for spec in specs:
            if isinstance(spec, str | Mapping):
                name, factory, options = _factory_of(spec)
                opened = Opened(name, factory(**options), owned=True)
            else:
                opened = Opened(getattr(spec, "__qualname__", type(spec).__qualname__), spec, owned=False)
            if_one_fails.callback(_close, opened)
            all_opened.append(_with_declared_limits(opened))
        if_one_fails.pop_all()
    return all_opened


def _close(opened: Opened) -> None:
    with suppress(Exception):
        opened.close(0.0)


def _with_declared_limits(opened: Opened) -> Opened:
    """`opened` with the limits that the attributes of its observer declare, which are checked here."""
    observe, rate = opened.observe, getattr(opened.observe, "calls_per_second", None)
    if rate is not None and not is_number(rate, 0):
        raise ConfigError(
            f"observers: calls_per_second={rate!r} of {opened.name!r} must be 0 or a positive number, or None for all."
        )
    wants = getattr(observe, "wants", None)
    if wants is not None:
        if not (isinstance(wants, AbstractSet | Sequence) and _EVENTS.issuperset(wants)):
            raise ConfigError(
                f"observers: wants={wants!r} of {opened.name!r} must be a set of event types, or None for all."
            )
        wants = frozenset(wants)
    content = getattr(observe, "content", False)
    if not isinstance(content, bool):  # a text such as "no" would turn it on
        raise ConfigError(f"observers: content={content!r} of {opened.name!r} must be true or false.")
    return replace(opened, wants=wants, content=content, calls_per_second=rate)


def _factory_of(spec: str | Mapping[str, Any]) -> tuple[str, Callable[..., Observer], dict[str, Any]]:
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"observers: {sorted(options)!r} lacks a name, as in {{'name': 'opentelemetry'}}.")
    factory = _FACTORIES.get(name) or _load_factory(name)
    parameters = inspect.signature(factory).parameters
    unknown = [option for option in options if option not in parameters]
    if unknown:
        known = ", ".join(map(repr, parameters)) or "none"
        raise ConfigError(f"observers: {name!r} has no option {unknown[0]!r}; it has {known}.")
    return name, factory, options


def _load_factory(name: str) -> Callable[..., Observer]:
    """Load a built-in observer's function, or the entry point of this name."""
    built_in = [EntryPoint(name, _BUILT_IN[name], _GROUP)] if name in _BUILT_IN else ()
    for entry in built_in or entry_points(group=_GROUP, name=name):
        factory: Callable[..., Observer] = entry.load()
        return factory
    others = sorted({*_BUILT_IN, *_FACTORIES, *entry_points(group=_GROUP).names})
    meant = did_you_mean(name, others)
    raise ConfigError(
        f"observers: there is no {name!r}.{meant} Known are {', '.join(map(repr, others))}; others are registered with "
        f"register_observer, or announced as entry points of the group {_GROUP!r}."
    )
