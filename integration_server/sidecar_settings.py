"""The settings of the HTTP sidecar: all that its process gets. None of them is a secret."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from integration_server.logs import Level
from integration_server.setting_types import (
    HOUR,
    SECOND,
    Address,
    BaseUrl,
    BrowserUrl,
    Count,
    ListenAddress,
    Networks,
    Seconds,
    duration,
    from_text,
    is_http_url,
    require,
)


class SidecarSettings(BaseModel):
    """One field for each setting. The environment variable is the field's alias, else its name in capitals.

    `.env.example` states the purpose of each.
    """

    model_config = ConfigDict(frozen=True, alias_generator=str.upper, populate_by_name=True, ser_json_timedelta="float")

    log_level: Annotated[Level, from_text(str.upper)] = "INFO"
    access_log: bool = True
    traces_endpoint: Annotated[str, require(is_http_url, "must be an http or https URL")] | None = None  # None: off
    traces_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    sidecar_address: ListenAddress = Address("127.0.0.1", 8080)
    public_url: BaseUrl = Field(default_factory=lambda data: f"http://{data['sidecar_address']}")

    default_return_url: BrowserUrl | None = None
    trusted_proxies: Networks = ()

    # Limits: docs/limits.md.
    sidecar_max_connections: Count = 500
    sidecar_max_body_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    sidecar_failures_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    sidecar_header_timeout: Seconds = duration("SIDECAR_HEADER_TIMEOUT_SECONDS", 10 * SECOND, le=300 * SECOND)
    sidecar_body_timeout: Seconds = duration("SIDECAR_BODY_TIMEOUT_SECONDS", 20 * SECOND, le=300 * SECOND)
    sidecar_keepalive: Seconds = duration("SIDECAR_KEEPALIVE_SECONDS", 75 * SECOND, ge=SECOND, le=HOUR)
