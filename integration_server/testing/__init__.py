"""Tests of programs that use the server: a pytest plugin with a real server and a provider that can be made to fail.

`plugin` and `sandbox` run in the process of the tests and import nothing of the server; `server_process` is the server.
"""
