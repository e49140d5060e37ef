"""The SQL store: tables, migrations, the implementations of the store ports, and the keyring. Alone uses SQLAlchemy."""
