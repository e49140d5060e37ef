"""The URLs: those of the toolkit under /o/, a login page, and one protected view."""

from django.contrib.auth.views import LoginView
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from oauth2_provider.decorators import protected_resource

from tests.end_to_end.dot.device import DeviceAuthorizations


@protected_resource(scopes=["read"])  # type: ignore[untyped-decorator]
def me(request: HttpRequest) -> JsonResponse:
    """The user of the bearer token; 403 without a valid token."""
    user = request.resource_owner
    return JsonResponse({"sub": str(user.pk), "email": user.email})


urlpatterns = [
    path("o/device-authorization/", DeviceAuthorizations.as_view()),
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("accounts/login/", LoginView.as_view()),
    path("me", me),
]
