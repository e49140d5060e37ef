"""The SQL store: tables, migrations, the implementations of the store ports, and the keyring. Only it uses SQLAlchemy."""
