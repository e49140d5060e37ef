"""Webhook schemes: how the webhooks of each provider are verified and how their events are read.

A scheme is a frozen value (`scheme.WebhookScheme`) that a provider declares as its `webhook_scheme`. Most schemes are
HMACs that differ in data only (`hmac_scheme.HmacScheme`). A scheme does no I/O: it receives a request with the secrets
that may have signed it, and returns the events of the request. Payloads are JSON, also where the request is a form, and
each event of a batch has a payload of its own. docs/webhooks.md has a table of the schemes.
"""
