"""Providers of installed packages: each entry point of a group is a `register(factory)`, or a module with one."""

from importlib.metadata import entry_points

from integration_server.providers.factory import ProviderFactory, ProvidersError

GROUP = "integration_server.providers"


def load_plugins(factory: ProviderFactory) -> None:
    """Register the providers of all installed packages. Raises `ProvidersError` with those that fail."""
    problems = []
    for entry_point in entry_points(group=GROUP):
        try:
            target = entry_point.load()
            getattr(target, "register", target)(factory)
        except Exception as error:
            package = entry_point.dist.name if entry_point.dist is not None else "an unnamed package"
            origin = f"{package}: entry point {entry_point.name} = {entry_point.value}"
            problems.append(f"{origin}: {type(error).__name__}: {error}")
    if problems:
        raise ProvidersError(problems)
