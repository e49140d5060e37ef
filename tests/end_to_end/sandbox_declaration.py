"""The sandbox's integration types as TOML files, for a server in its own process."""

from pathlib import Path


def declare_sandbox(directory: Path, sandbox_url: str, *, refresh_token_grace_seconds: int = 0) -> None:
    """Write both files into the directory."""
    (directory / "sandbox.toml").write_text(f"""\
integration_type = "sandbox"
auth_method = "oauth2"
authorize_url = "{sandbox_url}/oauth/authorize"
token_url = "{sandbox_url}/oauth/token"
revoke_url = "{sandbox_url}/oauth/revoke"
issuer = "{sandbox_url}"
scopes = ["read"]
verify_url = "{sandbox_url}/userinfo"
account_id_field = "sub"
account_label_field = "email"
api_base_url = "{sandbox_url}"
refresh_token_grace_seconds = {refresh_token_grace_seconds}
""")
    (directory / "sandbox_api_key.toml").write_text(f"""\
integration_type = "sandbox_api_key"
auth_method = "api_key"
verify_url = "{sandbox_url}/api/account"
account_id_field = "id"
account_label_field = "name"
api_base_url = "{sandbox_url}/api"
api_key_header = "X-Api-Key"
""")
