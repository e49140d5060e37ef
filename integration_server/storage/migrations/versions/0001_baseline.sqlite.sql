CREATE TABLE schema_compatibility (
    oldest_compatible_revision VARCHAR(32) NOT NULL,
    baseline_fingerprint VARCHAR(64) NOT NULL,
    CONSTRAINT pk_schema_compatibility PRIMARY KEY (oldest_compatible_revision)
);

CREATE TABLE audit_chains (
    chain_id VARCHAR(32) NOT NULL,
    number BIGINT NOT NULL,
    encrypted_key BLOB NOT NULL,
    begin_time DATETIME NOT NULL,
    entries BIGINT NOT NULL,
    head BLOB NOT NULL,
    checkpoint_mac BLOB NOT NULL,
    CONSTRAINT pk_audit_chains PRIMARY KEY (chain_id),
    CONSTRAINT uq_audit_chains_number UNIQUE (number)
);

CREATE TABLE audit_entries (
    chain_id VARCHAR(32) NOT NULL,
    sequence BIGINT NOT NULL,
    time DATETIME NOT NULL,
    caller TEXT NOT NULL,
    action VARCHAR(32) NOT NULL,
    user_id TEXT NOT NULL,
    integration_id BIGINT NOT NULL,
    integration_type TEXT NOT NULL,
    integration_version BIGINT NOT NULL,
    call_count BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    purpose TEXT NOT NULL,
    details TEXT NOT NULL,
    salt BLOB,
    commitment BLOB NOT NULL,
    erasure_mac BLOB,
    mac BLOB NOT NULL,
    CONSTRAINT pk_audit_entries PRIMARY KEY (chain_id, sequence)
);

CREATE INDEX ix_audit_entries_time ON audit_entries (time);

CREATE INDEX ix_audit_entries_user_id_time ON audit_entries (user_id, time);

CREATE TABLE data_keys (
    key_id VARCHAR(16) NOT NULL,
    wrapped_key BLOB NOT NULL,
    wrapping_key_id VARCHAR(255) NOT NULL,
    state VARCHAR(16) NOT NULL,
    create_time DATETIME NOT NULL,
    active_time DATETIME NOT NULL,
    remove_time DATETIME,
    CONSTRAINT pk_data_keys PRIMARY KEY (key_id)
);

CREATE UNIQUE INDEX uq_data_keys_state_rotating ON data_keys (state) WHERE state = 'rotating';

CREATE TABLE integration_changes (
    change_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    transaction_id BIGINT,
    integration_id INTEGER NOT NULL,
    user_id VARCHAR(255) NOT NULL,
    integration_type VARCHAR(255) NOT NULL,
    kind VARCHAR(32) NOT NULL,
    status_before VARCHAR(16),
    status_after VARCHAR(16),
    webhook_number BIGINT,
    change_time DATETIME NOT NULL
);

CREATE INDEX ix_integration_changes_change_time ON integration_changes (change_time);

CREATE INDEX ix_integration_changes_transaction_id ON integration_changes (transaction_id);

CREATE INDEX ix_integration_changes_user_id_change_id ON integration_changes (user_id, change_id);

CREATE TABLE integrations (
    integration_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    uid VARCHAR(255) NOT NULL,
    user_id VARCHAR(255) NOT NULL,
    integration_type VARCHAR(255) NOT NULL,
    oauth_client VARCHAR(64) DEFAULT '' NOT NULL,
    client_key VARCHAR(320) NOT NULL,
    auth_method VARCHAR(32) NOT NULL,
    name TEXT NOT NULL,
    config JSON NOT NULL,
    is_active BOOLEAN NOT NULL,
    account_id VARCHAR(255),
    account_label TEXT,
    scopes JSON NOT NULL,
    missing_scopes JSON NOT NULL,
    lacks_required_scope BOOLEAN NOT NULL,
    is_renewable BOOLEAN NOT NULL,
    reauthorization_required BOOLEAN NOT NULL,
    last_error_class VARCHAR(64),
    last_error_time DATETIME,
    last_error_message TEXT,
    error_count INTEGER NOT NULL,
    last_health_check DATETIME,
    access_token_expire_time DATETIME,
    refresh_token_expire_time DATETIME,
    connect_time DATETIME,
    create_time DATETIME NOT NULL,
    update_time DATETIME NOT NULL,
    version BIGINT NOT NULL,
    settings_version BIGINT DEFAULT '0' NOT NULL,
    webhook_secret_id VARCHAR(128) DEFAULT '' NOT NULL,
    refresh_retry_time DATETIME,
    refresh_failures INTEGER DEFAULT '0' NOT NULL,
    refresh_due_time DATETIME,
    check_due_time DATETIME,
    last_webhook_number BIGINT DEFAULT '0' NOT NULL,
    token_fingerprint VARCHAR(64),
    encrypted_credentials BLOB,
    CONSTRAINT uq_integrations_uid UNIQUE (uid)
);

CREATE INDEX ix_integrations_data_key_id ON integrations (substr(encrypted_credentials, 2, 8), integration_id);

CREATE INDEX ix_integrations_account_id ON integrations (account_id, integration_id);

CREATE INDEX ix_integrations_client_key_check_due_time ON integrations (client_key, check_due_time, integration_id) WHERE is_active IS 1 AND reauthorization_required IS 0;

CREATE INDEX ix_integrations_client_key_refresh_due_time ON integrations (client_key, refresh_due_time, integration_id) WHERE is_active IS 1 AND reauthorization_required IS 0;

CREATE INDEX ix_integrations_client_key_refresh_retry_time ON integrations (client_key, refresh_retry_time) WHERE refresh_failures > 0;

CREATE INDEX ix_integrations_integration_type_account_id ON integrations (integration_type, account_id);

CREATE INDEX ix_integrations_integration_type_oauth_client ON integrations (integration_type, oauth_client) WHERE oauth_client != '';

CREATE INDEX ix_integrations_pending ON integrations (integration_id) WHERE connect_time IS NULL;

CREATE INDEX ix_integrations_token_fingerprint ON integrations (token_fingerprint) WHERE token_fingerprint IS NOT NULL;

CREATE INDEX ix_integrations_user_id_integration_id ON integrations (user_id, integration_id);

CREATE UNIQUE INDEX uq_integrations_user_id_client_key_account_id ON integrations (user_id, client_key, account_id) WHERE account_id IS NOT NULL;

CREATE TABLE key_sets (
    key_set_id VARCHAR(16) NOT NULL,
    version BIGINT NOT NULL,
    wrapped_mac_key BLOB NOT NULL,
    wrapping_key_id VARCHAR(255) NOT NULL,
    mac BLOB NOT NULL,
    CONSTRAINT pk_key_sets PRIMARY KEY (key_set_id)
);

CREATE TABLE revocations (
    revocation_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    uid VARCHAR(255) NOT NULL,
    user_id VARCHAR(255) NOT NULL,
    integration_type VARCHAR(255) NOT NULL,
    oauth_client VARCHAR(64) DEFAULT '' NOT NULL,
    client_key VARCHAR(320) NOT NULL,
    account_id VARCHAR(255),
    bound_values TEXT DEFAULT '' NOT NULL,
    encrypted_credentials BLOB NOT NULL,
    create_time DATETIME NOT NULL,
    due_time DATETIME NOT NULL,
    attempts INTEGER DEFAULT '0' NOT NULL,
    token_fingerprint VARCHAR(64),
    call_due_time DATETIME,
    revoke_time DATETIME
);

CREATE INDEX ix_revocations_integration_type_account_id ON revocations (integration_type, account_id);

CREATE INDEX ix_revocations_client_key_due_time ON revocations (client_key, due_time, revocation_id);

CREATE INDEX ix_revocations_token_fingerprint ON revocations (token_fingerprint);

CREATE TABLE oauth_clients (
    oauth_client_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    uid VARCHAR(255) NOT NULL,
    integration_type VARCHAR(255) NOT NULL,
    name VARCHAR(64) NOT NULL,
    client_id VARCHAR(255) NOT NULL,
    callers JSON NOT NULL,
    version BIGINT NOT NULL,
    encrypted_secrets BLOB NOT NULL,
    create_time DATETIME NOT NULL,
    update_time DATETIME NOT NULL,
    CONSTRAINT uq_oauth_clients_integration_type_name UNIQUE (integration_type, name)
);

CREATE INDEX ix_oauth_clients_client_id ON oauth_clients (client_id);

CREATE TABLE oauth_client_alarms (
    integration_type VARCHAR(255) NOT NULL,
    oauth_client VARCHAR(64) NOT NULL,
    state VARCHAR(16) NOT NULL,
    refuse_time DATETIME NOT NULL,
    CONSTRAINT pk_oauth_client_alarms PRIMARY KEY (integration_type, oauth_client)
);

CREATE TABLE locks (
    lock_name VARCHAR(64) NOT NULL,
    CONSTRAINT pk_locks PRIMARY KEY (lock_name)
);

INSERT INTO locks (lock_name) VALUES ('revocation');

CREATE TABLE restores (
    restore_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    uid VARCHAR(32) NOT NULL,
    restore_time DATETIME NOT NULL
);

CREATE TABLE singleton_jobs (
    job_name VARCHAR(64) NOT NULL,
    due_time DATETIME NOT NULL,
    CONSTRAINT pk_singleton_jobs PRIMARY KEY (job_name)
);

INSERT INTO singleton_jobs (job_name, due_time) VALUES ('key_rotation', strftime('%Y-%m-%d %H:%M:%f000', 'now'));

CREATE TABLE due_work_claims (
    job_kind VARCHAR(32) NOT NULL,
    row_id VARCHAR(255) NOT NULL,
    due_time DATETIME NOT NULL,
    expire_time DATETIME NOT NULL,
    replaced_expire_time DATETIME,
    expired_claims INTEGER DEFAULT '0' NOT NULL,
    CONSTRAINT pk_due_work_claims PRIMARY KEY (job_kind, row_id)
);

CREATE TABLE authorization_attempts (
    attempt_id VARCHAR(255) NOT NULL,
    integration_id INTEGER,
    user_id VARCHAR(255) NOT NULL,
    integration_type VARCHAR(255) NOT NULL,
    encrypted_details BLOB NOT NULL,
    encrypted_callback BLOB,
    encrypted_outcome BLOB,
    state VARCHAR(16) NOT NULL,
    create_time DATETIME NOT NULL,
    expire_time DATETIME NOT NULL,
    poll_due_time DATETIME,
    poll_interval_seconds FLOAT,
    poll_failures INTEGER DEFAULT '0' NOT NULL,
    CONSTRAINT pk_authorization_attempts PRIMARY KEY (attempt_id),
    CONSTRAINT fk_authorization_attempts_integration_id FOREIGN KEY(integration_id) REFERENCES integrations (integration_id) ON DELETE SET NULL
);

CREATE INDEX ix_authorization_attempts_expire_time ON authorization_attempts (expire_time);

CREATE INDEX ix_authorization_attempts_integration_id ON authorization_attempts (integration_id);

CREATE INDEX ix_authorization_attempts_integration_type_poll_due_time ON authorization_attempts (integration_type, poll_due_time, attempt_id) WHERE poll_due_time IS NOT NULL AND integration_id IS NOT NULL;

CREATE INDEX ix_authorization_attempts_user_id_create_time ON authorization_attempts (user_id, create_time);

CREATE TABLE unrouted_webhooks (
    unrouted_webhook_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    integration_type VARCHAR(255) NOT NULL,
    oauth_client VARCHAR(64) DEFAULT '' NOT NULL,
    client_key VARCHAR(320) NOT NULL,
    event_id VARCHAR(255) NOT NULL,
    uid VARCHAR(255) NOT NULL,
    event_type VARCHAR(255) NOT NULL,
    account_id VARCHAR(255),
    route VARCHAR(255),
    reason VARCHAR(32) NOT NULL,
    payload_bytes BIGINT NOT NULL,
    receive_time DATETIME NOT NULL,
    encrypted_payload BLOB NOT NULL,
    CONSTRAINT uq_unrouted_webhooks_client_key_event_id UNIQUE (client_key, event_id)
);

CREATE INDEX ix_unrouted_webhooks_client_key ON unrouted_webhooks (client_key, unrouted_webhook_id);

CREATE INDEX ix_unrouted_webhooks_integration_type ON unrouted_webhooks (integration_type, unrouted_webhook_id);

CREATE INDEX ix_unrouted_webhooks_receive_time ON unrouted_webhooks (receive_time);

CREATE TABLE user_usage (
    user_id VARCHAR(255) NOT NULL,
    webhook_bytes BIGINT NOT NULL,
    CONSTRAINT pk_user_usage PRIMARY KEY (user_id)
);

CREATE TABLE health_checks (
    health_check_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    integration_id INTEGER NOT NULL,
    status VARCHAR(16) NOT NULL,
    healthy BOOLEAN NOT NULL,
    check_time DATETIME NOT NULL,
    latency_microseconds BIGINT NOT NULL,
    error_class VARCHAR(64),
    message TEXT NOT NULL,
    CONSTRAINT fk_health_checks_integration_id FOREIGN KEY(integration_id) REFERENCES integrations (integration_id) ON DELETE CASCADE
);

CREATE INDEX ix_health_checks_check_time ON health_checks (check_time);

CREATE INDEX ix_health_checks_integration_id_health_check_id ON health_checks (integration_id, health_check_id);

CREATE TABLE refresh_leases (
    integration_id INTEGER NOT NULL,
    client_key VARCHAR(320) NOT NULL,
    version BIGINT NOT NULL,
    owner VARCHAR(255) NOT NULL,
    expire_time DATETIME NOT NULL,
    call_time DATETIME,
    called_by VARCHAR(255),
    claim_time DATETIME NOT NULL,
    failure VARCHAR(64),
    refusal_time DATETIME,
    CONSTRAINT pk_refresh_leases PRIMARY KEY (integration_id),
    CONSTRAINT fk_refresh_leases_integration_id FOREIGN KEY(integration_id) REFERENCES integrations (integration_id) ON DELETE CASCADE
);

CREATE INDEX ix_refresh_leases_client_key_claim_time ON refresh_leases (client_key, claim_time);

CREATE TABLE webhook_consumer_offsets (
    integration_id INTEGER NOT NULL,
    consumer VARCHAR(64) NOT NULL,
    number BIGINT NOT NULL,
    CONSTRAINT pk_webhook_consumer_offsets PRIMARY KEY (integration_id, consumer),
    CONSTRAINT fk_webhook_consumer_offsets_integration_id FOREIGN KEY(integration_id) REFERENCES integrations (integration_id) ON DELETE CASCADE
);

CREATE TABLE webhook_events (
    webhook_event_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    integration_id INTEGER NOT NULL,
    number BIGINT NOT NULL,
    event_id VARCHAR(255) NOT NULL,
    uid VARCHAR(255) NOT NULL,
    user_id VARCHAR(255) NOT NULL,
    integration_type VARCHAR(255) NOT NULL,
    event_type VARCHAR(255) NOT NULL,
    receive_time DATETIME NOT NULL,
    encrypted_payload BLOB NOT NULL,
    CONSTRAINT uq_webhook_events_integration_id_number UNIQUE (integration_id, number),
    CONSTRAINT uq_webhook_events_integration_id_event_id UNIQUE (integration_id, event_id),
    CONSTRAINT fk_webhook_events_integration_id FOREIGN KEY(integration_id) REFERENCES integrations (integration_id) ON DELETE CASCADE
);

CREATE INDEX ix_webhook_events_receive_time ON webhook_events (receive_time);

CREATE TABLE webhook_routes (
    webhook_route_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    integration_id INTEGER NOT NULL,
    uid VARCHAR(255) NOT NULL,
    user_id VARCHAR(255) NOT NULL,
    integration_type VARCHAR(255) NOT NULL,
    route VARCHAR(255) NOT NULL,
    encrypted_copy BLOB NOT NULL,
    expire_time DATETIME,
    CONSTRAINT uq_webhook_routes_integration_id_route UNIQUE (integration_id, route),
    CONSTRAINT fk_webhook_routes_integration_id FOREIGN KEY(integration_id) REFERENCES integrations (integration_id) ON DELETE CASCADE
);

CREATE INDEX ix_webhook_routes_expire_time ON webhook_routes (expire_time);

CREATE INDEX ix_webhook_routes_integration_type_route ON webhook_routes (integration_type, route);

CREATE TABLE webhook_secrets (
    integration_id INTEGER NOT NULL,
    uid VARCHAR(255) NOT NULL,
    user_id VARCHAR(255) NOT NULL,
    integration_type VARCHAR(255) NOT NULL,
    webhook_secret_id VARCHAR(128) NOT NULL,
    encrypted_secret BLOB NOT NULL,
    secret_set_time DATETIME NOT NULL,
    encrypted_previous_secret BLOB,
    previous_expire_time DATETIME,
    CONSTRAINT pk_webhook_secrets PRIMARY KEY (integration_id),
    CONSTRAINT fk_webhook_secrets_integration_id FOREIGN KEY(integration_id) REFERENCES integrations (integration_id) ON DELETE CASCADE
);

CREATE TRIGGER record_created AFTER INSERT ON integrations FOR EACH ROW BEGIN
    INSERT INTO integration_changes (transaction_id, integration_id, user_id, integration_type, kind, status_before, status_after, webhook_number, change_time)
    VALUES (NULL, NEW.integration_id, NEW.user_id, NEW.integration_type, 'created',
    NULL,
    CASE WHEN NEW.connect_time IS NULL THEN 'pending' WHEN NOT NEW.is_active THEN 'inactive' WHEN NEW.reauthorization_required THEN 'expired' WHEN NEW.last_error_class IS NOT NULL OR NEW.lacks_required_scope THEN 'error' ELSE 'active' END,
    NULL, strftime('%Y-%m-%d %H:%M:%f000', 'now'));
END;

CREATE TRIGGER record_updated AFTER UPDATE ON integrations FOR EACH ROW WHEN (OLD.uid IS NOT NEW.uid
    OR OLD.user_id IS NOT NEW.user_id
    OR OLD.integration_type IS NOT NEW.integration_type
    OR OLD.auth_method IS NOT NEW.auth_method
    OR OLD.encrypted_credentials IS NOT NEW.encrypted_credentials
    OR OLD.is_active IS NOT NEW.is_active
    OR OLD.reauthorization_required IS NOT NEW.reauthorization_required
    OR OLD.connect_time IS NOT NEW.connect_time
    OR OLD.version IS NOT NEW.version
    OR OLD.scopes IS NOT NEW.scopes
    OR OLD.last_error_class IS NOT NEW.last_error_class
    OR OLD.lacks_required_scope IS NOT NEW.lacks_required_scope
    OR OLD.name IS NOT NEW.name
    OR OLD.config IS NOT NEW.config
    OR OLD.account_id IS NOT NEW.account_id
    OR OLD.account_label IS NOT NEW.account_label
    OR OLD.missing_scopes IS NOT NEW.missing_scopes)
BEGIN
    INSERT INTO integration_changes (transaction_id, integration_id, user_id, integration_type, kind, status_before, status_after, webhook_number, change_time)
    SELECT NULL, NEW.integration_id, NEW.user_id, NEW.integration_type, kinds.column2,
    diff.status_before, diff.status_after, NULL, strftime('%Y-%m-%d %H:%M:%f000', 'now')
    FROM (SELECT CASE WHEN OLD.connect_time IS NULL THEN 'pending' WHEN NOT OLD.is_active THEN 'inactive' WHEN OLD.reauthorization_required THEN 'expired' WHEN OLD.last_error_class IS NOT NULL OR OLD.lacks_required_scope THEN 'error' ELSE 'active' END AS status_before,
        CASE WHEN NEW.connect_time IS NULL THEN 'pending' WHEN NOT NEW.is_active THEN 'inactive' WHEN NEW.reauthorization_required THEN 'expired' WHEN NEW.last_error_class IS NOT NULL OR NEW.lacks_required_scope THEN 'error' ELSE 'active' END AS status_after,
        OLD.connect_time IS NOT NULL AND (OLD.name IS NOT NEW.name
            OR OLD.config IS NOT NEW.config
            OR OLD.is_active IS NOT NEW.is_active
            OR OLD.account_id IS NOT NEW.account_id
            OR OLD.account_label IS NOT NEW.account_label
            OR OLD.scopes IS NOT NEW.scopes
            OR OLD.missing_scopes IS NOT NEW.missing_scopes) AS is_updated,
        OLD.connect_time IS NOT NULL AND OLD.version IS NOT NEW.version AS is_refreshed,
        OLD.uid IS NOT NEW.uid
            OR OLD.user_id IS NOT NEW.user_id
            OR OLD.integration_type IS NOT NEW.integration_type
            OR OLD.auth_method IS NOT NEW.auth_method
            OR OLD.encrypted_credentials IS NOT NEW.encrypted_credentials
            OR OLD.is_active IS NOT NEW.is_active
            OR OLD.reauthorization_required IS NOT NEW.reauthorization_required
            OR OLD.connect_time IS NOT NEW.connect_time
            OR OLD.version IS NOT NEW.version
            OR OLD.scopes IS NOT NEW.scopes AS is_served) AS diff,
    (VALUES (1, 'updated'), (2, 'credentials_refreshed'), (3, 'status_changed'), (4, 'internal')) AS kinds
    WHERE CASE kinds.column1
        WHEN 1 THEN diff.is_updated
        WHEN 2 THEN diff.is_refreshed
        WHEN 3 THEN diff.status_before <> diff.status_after
        ELSE diff.is_served AND NOT (diff.is_updated OR diff.is_refreshed OR diff.status_before <> diff.status_after)
    END
    ORDER BY kinds.column1;
END;

CREATE TRIGGER record_disconnected AFTER DELETE ON integrations FOR EACH ROW BEGIN
    INSERT INTO integration_changes (transaction_id, integration_id, user_id, integration_type, kind, status_before, status_after, webhook_number, change_time)
    VALUES (NULL, OLD.integration_id, OLD.user_id, OLD.integration_type, 'disconnected',
    CASE WHEN OLD.connect_time IS NULL THEN 'pending' WHEN NOT OLD.is_active THEN 'inactive' WHEN OLD.reauthorization_required THEN 'expired' WHEN OLD.last_error_class IS NOT NULL OR OLD.lacks_required_scope THEN 'error' ELSE 'active' END,
    NULL,
    NULL, strftime('%Y-%m-%d %H:%M:%f000', 'now'));
END;

CREATE TRIGGER record_webhook AFTER INSERT ON webhook_events FOR EACH ROW BEGIN
    INSERT INTO integration_changes (transaction_id, integration_id, user_id, integration_type, kind, status_before, status_after, webhook_number, change_time)
    VALUES (NULL, NEW.integration_id, NEW.user_id, NEW.integration_type, 'webhook_received',
    NULL,
    NULL,
    NEW.number, strftime('%Y-%m-%d %H:%M:%f000', 'now'));
END;

CREATE TRIGGER subtract_webhook_bytes AFTER DELETE ON webhook_events FOR EACH ROW BEGIN
    UPDATE user_usage SET webhook_bytes = webhook_bytes - length(OLD.encrypted_payload) WHERE user_id = OLD.user_id;
END;
