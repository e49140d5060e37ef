"""How each provider signs what it sends by itself, and how its events are read.

A scheme is a frozen value (`scheme.WebhookScheme`) that a provider declares as its `webhook_scheme`. Most are HMACs
that differ in data only (`hmac_scheme.HmacScheme`). A scheme knows nothing of storage or HTTP: it is given a request
with the secrets that may have signed it, and gives back what the request brings. Payloads are JSON, also of what came
as a form; a batch is taken apart. docs/webhooks.md has a table of all.
"""
