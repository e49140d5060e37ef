"""Providers of other packages: each entry point of a group is a `register(factory)`, or a module with one."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from integration_server.providers.factory import ProviderFactory, ProvidersError

GROUP = "integration_server.providers"


def load_plugins(factory: ProviderFactory) -> None:
    """Let each installed package register its providers. Raises `ProvidersError` naming those that fail."""
    problems = []
    for entry_point in entry_points(group=GROUP):
        try:
            _register_of(entry_point)(factory)
        except Exception as error:
            problems.append(f"{_describe_entry_point(entry_point)}: {type(error).__name__}: {error}")
    if problems:
        raise ProvidersError(problems)


def _register_of(entry_point: EntryPoint) -> Callable[[ProviderFactory], None]:
    target = entry_point.load()
    register: Callable[[ProviderFactory], None] = getattr(target, "register", target)
    return register


def _describe_entry_point(entry_point: EntryPoint) -> str:
    package = entry_point.dist.name if entry_point.dist is not None else "an unnamed package"
    return f"{package}: entry point {entry_point.name} = {entry_point.value}"
