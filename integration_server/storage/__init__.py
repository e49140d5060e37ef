"""The SQL store: tables, migrations, what fulfils the store ports, and the keyring. The only place for SQLAlchemy."""
