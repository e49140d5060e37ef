"""What django-oauth-toolkit 3.4 lacks to work with the device authorizations of oauthlib 4."""

from typing import Any

from django.http import HttpRequest
from oauth2_provider.models import get_device_grant_model
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauth2_provider.views import DeviceAuthorizationView


class DeviceAuthorizations(DeviceAuthorizationView):  # type: ignore[misc]  # the toolkit has no types
    """The toolkit's view without the member `scope` of oauthlib's responses, which it cannot store."""

    def create_device_authorization_response(self, request: HttpRequest) -> tuple[Any, Any, int]:
        """The response, as the toolkit knows it."""
        headers, response, status = super().create_device_authorization_response(request)
        if isinstance(response, dict):
            response.pop("scope", None)
        return headers, response, status


class DeviceValidator(OAuth2Validator):  # type: ignore[misc]  # the toolkit has no types
    """The toolkit's validator with a method that oauthlib requires."""

    def validate_device_code(self, _client_id: str | None, device_code: str, request: Any) -> str | None:
        """The state of a device code, with its user and scopes. An approved one works once."""
        grants = get_device_grant_model().objects.filter(device_code=device_code, client_id=request.client.client_id)
        grant = grants.first()
        if grant is None or grant.status != grant.AUTHORIZED:
            return None  # the toolkit's view has responded to the others
        request.user, request.scopes = grant.user, grant.scope.split()
        grants.delete()
        return "authorized"  # oauthlib's DeviceCodeGrant.DEVICE_CODE_AUTHORIZED
