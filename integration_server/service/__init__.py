"""The use cases, one file a verb. They know the domain, and the rest of the world only through `ports`."""
