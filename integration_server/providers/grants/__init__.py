"""The grants that secrets obtain, and not a user's decision: one module each.

A module has `request_tokens`, which sends the requests of the grant, with the values of a provider, and returns tokens.
It sees the provider as one of the protocols in `grant_client.py`. `OAuth2Provider` calls it to connect an account and
to renew its tokens, which is the same here.
"""
