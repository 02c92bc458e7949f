-- The tables as SQLAlchemy 2.0 and Alembic write them for the model of the FastAPI starter, with hashes
-- that pwdlib, passlib and bcrypt have made of "a good canary passphrase".

CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO alembic_version (version_num) VALUES ('1975ea83b712');

CREATE TABLE users (
	id SERIAL NOT NULL, 
	email VARCHAR(255) NOT NULL, 
	hashed_password VARCHAR(255) NOT NULL, 
	full_name VARCHAR(255), 
	is_active BOOLEAN NOT NULL, 
	is_admin BOOLEAN NOT NULL, 
	created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
	updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
	PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_users_email ON users (email);

CREATE TABLE items (
	id SERIAL NOT NULL, 
	title VARCHAR(255) NOT NULL, 
	owner_id INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(owner_id) REFERENCES users (id) ON DELETE CASCADE
);

INSERT INTO users VALUES
	(1, 'Admin@Example.com', '$argon2id$v=19$m=65536,t=3,p=4$3trgdSVEw2LcTEH/MGrvfA$Gzf6+Nj6Mr7JA1CcEUzcVtmnc9z4iOpD3QkbU6+B1hk', 'Ada Lovelace', true, true, '2024-01-31 10:00:00.123456+00', '2024-02-01 10:00:00+02'),
	(3, 'bob@example.com', '$2b$04$GBl0wcG06HEOQnRueD8cTOhE3P3js/QwaaLGFCSVojlghf.f3xca6', NULL, true, false, '2024-03-01 00:00:00+00', '2024-03-01 00:00:00+00'),
	(4, 'gone@example.com', '$2y$04$PQ4jpLxmp4xhzZGYp3lreORaRg35FFGjkHGNcDSEKCzCcbngflqD2', 'Gone', false, true, '2024-03-02 00:00:00+00', '2024-03-02 00:00:00+00'),
	(5, 'BOB@example.com', '$2b$04$GBl0wcG06HEOQnRueD8cTOhE3P3js/QwaaLGFCSVojlghf.f3xca6', 'Bob again', true, false, '2024-03-03 00:00:00+00', '2024-03-03 00:00:00+00'),
	(6, 'root@localhost', '$2b$04$GBl0wcG06HEOQnRueD8cTOhE3P3js/QwaaLGFCSVojlghf.f3xca6', 'Root', true, true, '2024-03-04 00:00:00+00', '2024-03-04 00:00:00+00'),
	(70, 'old@example.com', '$pbkdf2-sha256$1000$H0Oode79X.t9z5mTMqb03g$IGwUb0JHQx3luevLnST5lAL/jxjShsCy.b6UMAGtbPI', 'Old', true, false, 'infinity', '2024-03-05 00:00:00+00');
INSERT INTO items (title, owner_id) VALUES ('a', 1), ('b', 70);
SELECT setval('users_id_seq', 70);
