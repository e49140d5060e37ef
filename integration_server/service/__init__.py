"""The use cases, one package per capability. They depend on `domain`, and on everything else only through ports."""
