-- The tables as SQLModel writes them for the models of the full-stack FastAPI template.

CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE "user" (
	email VARCHAR(255) NOT NULL, 
	is_active BOOLEAN NOT NULL, 
	is_superuser BOOLEAN NOT NULL, 
	full_name VARCHAR(255), 
	id UUID NOT NULL, 
	hashed_password VARCHAR NOT NULL, 
	created_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_user_email ON "user" (email);

CREATE TABLE item (
	id UUID NOT NULL, 
	title VARCHAR(255) NOT NULL, 
	description VARCHAR(255), 
	owner_id UUID NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(owner_id) REFERENCES "user" (id) ON DELETE CASCADE
);

INSERT INTO "user" VALUES
	('bob@example.com', true, false, NULL, 'a0000000-0000-4000-8000-000000000002', '$argon2id$v=19$m=1024,t=1,p=2$lpKy9t4bQwiBcK61lpJSKg$cxQ5cEDE6TcVk/0xDG2403mrjAUB8ZV4LF2GokYOdBc', '2025-02-01 00:00:00+00'),
	('admin@example.com', true, true, 'Ada', 'c0000000-0000-4000-8000-000000000001', '$2b$04$GBl0wcG06HEOQnRueD8cTOhE3P3js/QwaaLGFCSVojlghf.f3xca6', '2025-01-01 00:00:00+00'),
	('eve@example.com', false, false, NULL, 'b0000000-0000-4000-8000-000000000003', '', NULL);
INSERT INTO item VALUES
	('d0000000-0000-4000-8000-000000000004', 'a', NULL, 'a0000000-0000-4000-8000-000000000002');
