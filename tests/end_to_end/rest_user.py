"""A user of the REST API of the requirements, and the nine requests that they document."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from integration_server.sandbox.browser_user import decide
from tests.end_to_end.system import APP_CALLBACK, query_of

API = "/api/v1/integrations"


def connect_body(integration_type: str = "google_calendar") -> Mapping[str, str]:
    """The body of POST /connect."""
    return {"integration_type": integration_type, "redirect_uri": APP_CALLBACK}


def of_page(query: Mapping[str, str], integration_type: str = "google_calendar") -> Mapping[str, str]:
    """The query of the requirements' `fetch`: these three parameters."""
    return {"code": query["code"], "state": query["state"], "integration_type": integration_type}


@dataclass(frozen=True, slots=True)
class RestUser:
    """A user in front of Envoy. `browser` opens the provider's pages."""

    client: httpx.AsyncClient = field(repr=False)
    browser: httpx.AsyncClient = field(repr=False)
    token: Callable[[str], str] = field(repr=False)
    integration_type: str = "google_calendar"

    def bearer(self, user_id: str = "ada") -> Mapping[str, str]:
        """The header with a user's token."""
        return {"Authorization": f"Bearer {self.token(user_id)}"}

    async def request(self, method: str, path: str, user_id: str = "ada", **options: Any) -> httpx.Response:
        """A request with the user's token."""
        return await self.client.request(method, f"{API}{path}", headers=self.bearer(user_id), **options)

    async def authorize(self, user_id: str = "ada") -> dict[str, str]:
        """Connect as the requirements' page does, up to the provider's redirect; its query."""
        connected = await self.request("POST", "/connect", user_id, json=connect_body(self.integration_type))
        assert connected.status_code == 200, connected.text
        assert set(connected.json()) >= {"authorization_url", "state"}
        location = await decide(self.browser, connected.json()["authorization_url"], account="ada", allow=True)
        query = query_of(location)
        assert query["state"] == connected.json()["state"]
        return query

    async def connect(self) -> str:
        """Connect an account; the integration's id."""
        query = await self.authorize()
        response = await self.client.get(f"{API}/callback", params=of_page(query, self.integration_type))
        return str(response.json()["integration_id"])


async def make_nine_requests(user: RestUser) -> None:
    """Make each request as the requirements have it: paths, bodies and queries are theirs."""
    # 1 and 2: connect, and the callback of the page
    query = await user.authorize()
    called_back = await user.client.get(f"{API}/callback", params=of_page(query, user.integration_type))
    assert called_back.status_code == 200
    result = called_back.json()
    assert result["success"] is True
    assert "redirect_url" in result
    number = result["integration_id"]
    assert isinstance(number, int)

    # 3: list
    listed = await user.request("GET", "/status", params={"integration_type": user.integration_type})
    (integration,) = listed.json()["integrations"]
    assert integration["integration_id"] == str(number)
    assert (integration["status"], integration["is_active"]) == ("STATUS_ACTIVE", True)

    # 4: details
    details = await user.request("GET", f"/{number}")
    assert details.json()["integration"]["account_label"] == integration["account_label"]

    # 5: update, with the documented body
    update = {"name": "My Google Calendar", "config": {"sync_enabled": True}, "is_active": True}
    updated = await user.request("PUT", f"/{number}", json=update)
    assert updated.status_code == 200, updated.text
    changed = updated.json()["integration"]
    assert (changed["name"], changed["config"], changed["is_active"]) == (update["name"], {"sync_enabled": True}, True)

    # 7 and 8: health
    every = (await user.request("GET", "/health/all")).json()
    assert (every["total_integrations"], every["healthy_count"], every["error_count"]) == (1, 1, 0)
    one = (await user.request("GET", f"/health/{number}")).json()
    assert one["health_check"]["healthy"] is True

    # 9: refresh, with the id as a number, as documented
    refreshed = await user.request("POST", f"/{number}/refresh-token", json={"integration_id": number, "force": False})
    assert (refreshed.json()["success"], refreshed.json()["refreshed"]) == (True, False)

    # 6: disconnect
    gone = await user.request("DELETE", f"/{number}")
    assert gone.json()["success"] is True
    assert (await user.request("GET", f"/{number}")).status_code == 404
