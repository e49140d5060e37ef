"""Names that are no setting: in `.env` all of them, in the environment those that resemble a setting.

A setting with a misspelled name is not read, silently: the server starts with its default.
"""

import difflib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from integration_server.settings import Settings, SettingsError, read_env_file

# Of difflib: ENCRYPTON_KEY has 0.96 with ENCRYPTION_KEY, DB_URL 0.7 with DATABASE_URL. The environment has names of
# many other programs, so that only a slip of a letter or two counts there.
_RESEMBLES_IN_FILE = 0.75
_RESEMBLES_IN_ENVIRONMENT = 0.88
_MAX_NAMES = 20  # of one log event or table


class HasSettings(Protocol):
    """A provider, as far as its settings are concerned."""

    @property
    def setting_names(self) -> Collection[str]:
        """The full names of its settings, without those that only code in Python knows."""

    @property
    def integration_type(self) -> str:
        """Its type: its settings begin with it."""


@dataclass(frozen=True, slots=True)
class UnknownName:
    """A name that is no setting, and the setting that may be meant."""

    name: str
    source: str
    meant: str | None

    def __str__(self) -> str:
        hint = f"; did you mean {self.meant}?" if self.meant else ""
        return f"{self.name} in {self.source} is not a setting and is not read{hint}"


def unknown_names(directory: Path, providers: Iterable[HasSettings]) -> Sequence[UnknownName]:
    """The names in `.env` of a directory that are no setting, and those in the environment that resemble one.

    At most 20, first those that resemble a setting. None of the file if it is no longer as it was when the settings
    were read: a named pipe is empty then.
    """
    known = {field.alias or name.upper() for name, field in Settings.model_fields.items()}
    prefixes = []
    for provider in providers:
        known.update(provider.setting_names)
        prefixes.append(f"{provider.integration_type.upper()}_")
    known_names = _KnownNames(known)
    in_file = _names_in_file(directory) - known
    found = [
        *(
            UnknownName(name, ".env", meant)
            for name in sorted(in_file)
            # A type in Python may read further names of its own.
            if (meant := known_names.most_similar(name, _RESEMBLES_IN_FILE)) is not None
            or not name.startswith(tuple(prefixes))
        ),
        *(
            UnknownName(name, "the environment", meant)
            for name in sorted(os.environ.keys() - known - in_file)
            if (meant := known_names.most_similar(name, _RESEMBLES_IN_ENVIRONMENT)) is not None
        ),
    ]
    return sorted(found, key=lambda unknown: unknown.meant is None)[:_MAX_NAMES]


def misspelled_names() -> Sequence[str]:
    """What to say, after a failure, of names that resemble a setting of the server: one of them may be its cause."""
    return [str(unknown) for unknown in unknown_names(Path.cwd(), ()) if unknown.meant]


def warn_of_unknown_names(providers: Iterable[HasSettings]) -> None:
    """Log a warning for each, at the start of a server."""
    log = structlog.get_logger(__name__)
    for unknown in unknown_names(Path.cwd(), providers):
        log.warning("unknown_setting", name=unknown.name, source=unknown.source, did_you_mean=unknown.meant)


def _names_in_file(directory: Path) -> Set[str]:
    try:
        return read_env_file(directory, interpolate=False, max_wait=0.0).keys()
    except SettingsError:
        return frozenset()


class _KnownNames:
    """The names of settings, to find those that resemble another. An environment has hundreds of other names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_length: defaultdict[int, list[tuple[Set[str], str]]] = defaultdict(list)
        for name in names:
            self._by_length[len(name)].append((frozenset(name), name))

    def most_similar(self, name: str, cutoff: float) -> str | None:
        """The name that resembles it most. Only those are compared whose length and letters can reach the cutoff."""
        name = name.upper()
        letters = frozenset(name)
        candidates = []
        for length, others in self._by_length.items():
            max_unmatched = (1.01 - cutoff) * (len(name) + length)  # characters
            if abs(len(name) - length) <= max_unmatched:
                candidates += [other for its_letters, other in others if len(letters ^ its_letters) <= max_unmatched]
        return next(iter(difflib.get_close_matches(name, candidates, 1, cutoff)), None)
