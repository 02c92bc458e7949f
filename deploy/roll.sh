#!/bin/sh
# Replaces the replicas one by one with what compose.yaml and the environment now say: a new image,
# a new secret. Each drains first (SHUTDOWN_DELAY); the next waits until its successor is healthy.
# Not with --no-deps, which Compose compares too: the next "up -d" would replace all replicas.
set -eu
cd "$(dirname "$0")"
for id in $(docker compose ps -aq app); do
	docker stop "$id" >/dev/null
	docker rm "$id" >/dev/null
	docker compose up -d --no-recreate --wait app
done
