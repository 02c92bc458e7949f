# go.mod names the toolchain; a machine may be set to "local".
export GOTOOLCHAIN = auto

.PHONY: help run dev psql reset-dev test rename form lint build image fault soak bench bench-growth bench-peers clients

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0
FAULT = go test -tags fault -count=1 -timeout 60m -v
BENCH = go test -tags bench -run '^TestBench$$' -timeout 120m -v ./test/bench -args

# A tab counts 4 columns; of a character of several bytes, the first counts. The project's name counts
# as five letters, so that a rename makes no line too long.
PROJECT = $(shell sed -n 's/^module //p' go.mod)
OVER_100 = { gsub(/\t/, "    "); gsub(/[\200-\277]/, ""); $$0 = tolower($$0) } \
	{ gsub(/$(PROJECT)/, "12345") } \
	length > 100 { print FILENAME ":" FNR ": over 100 columns"; bad = 1 } END { exit bad }

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 22

# As jobs of their own, these get Ctrl-C, and make does not.
run: ## install what is missing, and serve on port 8000
	@./setup.sh
	go build -o latch .
	@set -m 2>/dev/null; ./latch; exit $$?

dev: ## the same, and again at every change of a source; the data stay
	@./setup.sh
	@set -m 2>/dev/null; internal/devdb/watch.sh latch; exit $$?

psql: ## open the private database of "make run" and "make dev"
	@./setup.sh
	@set -m 2>/dev/null; go run . psql; exit $$?

reset-dev: ## delete that database, after asking
	@internal/devdb/reset.sh

test: ## install what is missing, and run all tests on a PostgreSQL of their own
	@./setup.sh test
	go test -race -p 1 -count=1 ./... # test/faults measures times, of a binary that no cache knows

rename: ## give the project another name: make rename NAME=...
	@docs/rename.sh "$(if $(findstring command,$(origin NAME)),$$NAME)" # WSL sets a NAME too

form: ## check the form of the sources
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "gofmt -w is due for:" $$files; exit 1; }
	@git ls-files -co --exclude-standard '*.go' '*.sh' .ci/run | LC_ALL=C xargs awk '$(OVER_100)'

# What go.mod may require, and no fourth. govulncheck needs its database; without a network it says so.
lint: form ## check form, common mistakes, known vulnerabilities and go.mod
	go vet ./... && go vet -tags fault ./... && go vet -tags bench ./...
	go run $(STATICCHECK) ./...
	go run $(STATICCHECK) -tags fault ./...
	go run $(STATICCHECK) -tags bench ./...
	@out=$$(go run $(GOVULNCHECK) ./... 2>&1) && echo "$$out" || case "$$out" in \
		*'fetching vulnerabilities'*) echo 'govulncheck: its database is out of reach; not checked' ;; \
		*) echo "$$out"; exit 1 ;; esac
	go mod tidy -diff
	@got=$$(go list -m -f '{{if not (or .Main .Indirect)}}{{.Path}}{{end}}' all | xargs); \
	want='github.com/jackc/pgx/v5 github.com/pgvector/pgvector-go golang.org/x/crypto'; \
	[ "$$got" = "$$want" ] || { echo "go.mod requires: $$got"; echo "it may require: $$want"; exit 1; }

build: ## build the program as the image does
	CGO_ENABLED=0 go build -buildvcs=auto -trimpath -tags=nethttpomithttp2 -ldflags='-s -w' -o latch .

image: ## build the container image
	docker build --build-arg COMMIT="$$(git rev-parse HEAD)" -t latch .

fault: ## break PostgreSQL, the network, disks and clients under load; some 20 minutes
	@./setup.sh test
	@.ci/setup.sh pgbouncer haproxy nginx
	$(FAULT) -skip '^TestSoak$$' ./test/faults

soak: ## ten minutes of mixed load: memory and goroutines stay flat
	@./setup.sh test
	@.ci/setup.sh pgbouncer haproxy
	$(FAULT) -run '^TestSoak$$' ./test/faults

# ARGS are flags of the test, as in: make bench ARGS='-rows login -rounds 9'
bench: ## measure the program on Linux, and write the table in BENCHMARKS.md
	@./setup.sh test
	@.ci/setup.sh wrk
	$(BENCH) $(ARGS)

bench-growth: ## measure with a million accounts, and with a million documents of one
	@./setup.sh test
	@.ci/setup.sh wrk
	$(BENCH) -growth $(ARGS)

bench-peers: ## measure other frameworks under the same load
	@./setup.sh test
	@.ci/setup.sh wrk
	test/bench/peers/run.sh $(ARGS)

clients: ## generate clients with twelve generators, compile them, and drive each
	@test/clients/run.sh
