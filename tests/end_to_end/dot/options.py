"""The options of a django-oauth-toolkit server, which it reads from its environment."""

import os
from dataclasses import dataclass
from typing import Self

PREFIX = "DOT_"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run. The environment variables are `DOT_` and the name in capitals."""

    client_id: str
    client_secret: str
    redirect_uri: str
    username: str
    password: str
    email: str
    access_token_expire_seconds: int = 3600
    refresh_token_grace_period_seconds: int = 0
    grant_type: str = "authorization-code"

    @classmethod
    def from_environment(cls) -> Self:
        """The options in this process's environment."""
        given = {name: os.environ.get(PREFIX + name.upper(), "") for name in cls.__annotations__}
        texts = {name: value for name, value in given.items() if value}
        numbers = {name: int(texts.pop(name)) for name in list(texts) if name.endswith("_seconds")}
        return cls(**texts, **numbers)  # type: ignore[arg-type] # texts are texts, and numbers are numbers

    def as_environment(self) -> dict[str, str]:
        """The options as environment variables."""
        return {PREFIX + name.upper(): str(getattr(self, name)) for name in self.__annotations__}
