"""The project's addresses: the toolkit's own under /o/, a login page, and one protected view."""

from django.contrib.auth.views import LoginView
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from oauth2_provider.decorators import protected_resource


@protected_resource(scopes=["read"])  # type: ignore[untyped-decorator]
def me(request: HttpRequest) -> JsonResponse:
    """Whose the bearer token is; 403 without one that is good."""
    user = request.resource_owner
    return JsonResponse({"sub": str(user.pk), "email": user.email})


urlpatterns = [
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("accounts/login/", LoginView.as_view()),
    path("me", me),
]
