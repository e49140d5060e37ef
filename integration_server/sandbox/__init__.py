"""The sandbox: an OAuth 2 provider for development and tests, over loopback HTTP.

It follows the protocol strictly and shares no code of the protocol with the rest of the server, so that an error is not
made on both sides. All state is in memory. It is not secure enough for real users.
"""
