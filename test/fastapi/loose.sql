-- Tables with few constraints: nullable columns, times without a zone, text of any length, a password in
-- bytes, and columns that Latch does not have.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE "user" (id integer, name text); -- another one: it has no passwords

CREATE TABLE accounts (
	id BIGSERIAL NOT NULL, 
	email TEXT, 
	password BYTEA, 
	first_name TEXT, 
	last_name TEXT, 
	role VARCHAR(20), 
	disabled BOOLEAN, 
	deleted_at TIMESTAMP WITHOUT TIME ZONE, 
	created_at TIMESTAMP WITHOUT TIME ZONE, 
	updated_at TIMESTAMP WITHOUT TIME ZONE, 
	embedding VECTOR(3), 
	PRIMARY KEY (id)
);

INSERT INTO accounts VALUES
	(0, ' Admin@example.com ', '$2b$04$GBl0wcG06HEOQnRueD8cTOhE3P3js/QwaaLGFCSVojlghf.f3xca6', 'Ada', 'Lovelace', 'admin', NULL, NULL, '2024-07-01 12:00:00', '2024-07-02 12:00:00', '[1,2,3]'),
	(2, 'bob@example.com', '$2a$04$11xkzjolcgWHWR6czJ1oJODCO8Iq0U80BDF3ofAbnOa39ilq8GkX.', repeat('b', 300), NULL, 'user', false, NULL, NULL, NULL, NULL),
	(3, 'gone@example.com', '$2a$04$11xkzjolcgWHWR6czJ1oJODCO8Iq0U80BDF3ofAbnOa39ilq8GkX.', NULL, NULL, NULL, false, '2024-08-01 00:00:00', NULL, NULL, NULL),
	(4, 'off@example.com', NULL, '', '', NULL, true, NULL, '0044-03-15 00:00:00 BC', NULL, NULL),
	(5, NULL, 'x', 'No', 'Address', NULL, false, NULL, NULL, NULL, NULL),
	(9223372036854775807, 'big@example.com', 'x', NULL, NULL, NULL, false, NULL, NULL, NULL, NULL);
CREATE VIEW users AS SELECT id, email FROM accounts;
