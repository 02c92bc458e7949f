package main

// config.go has every setting with its meaning, unit and default: the table is what -h prints and
// what is enforced. A setting NAME comes from the environment, or else from the file .env in the
// working directory; NAME_FILE names a file to read it from, as container secrets are given. Names
// may be in lower case too; empty values are ignored. No value is printed: it may be a secret.

import (
	"cmp"
	json "encoding/json/v2"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

type config struct {
	AppName, Host, APIPrefix, DatabaseURL, TokenIssuer, Algorithm, TextSearch, MetricsAddr string

	EmbeddingsURL, EmbeddingsModel, EmbeddingsKey, EmbeddingsHeader, LogLevel, LogFormat string

	Port, DatabaseMaxConns, SlowStatement, AccessMinutes, RefreshDays, RefreshGrace int64

	EmbeddingDimensions, EmbeddingsBatch, EmbeddingsLoad, ShutdownDelay int64

	Debug, Docs, DatabaseEcho, RegistrationOpen bool

	SecretKeys, CORSOrigins []string
	TrustedProxies          []netip.Prefix
	warnings                []string // names in .env that look like typing errors
}

// setting is one row of the table.
type setting struct {
	name string
	dst  any    // points to the field of config
	def  string // the default
	rule string // "lowest highest" of a number, or the words that are allowed, with commas
	doc  string
}

// settings returns the table, with pointers into c.
func (c *config) settings() []setting {
	return []setting{
		{"APP_NAME", &c.AppName, "Latch", "", "name of the service; refused as a password"},
		{"DEBUG", &c.Debug, "false", "", "log at debug level, serve /debug/pprof at " +
			"METRICS_ADDR, and accept a SECRET_KEY marked development-only"},
		{"DOCS", &c.Docs, "true", "", "serve /docs and /openapi.json"},
		{"HOST", &c.Host, "127.0.0.1", "", "address to listen on; the image sets 0.0.0.0"},
		{"PORT", &c.Port, "", "1 65535",
			"port to listen on (8000; in development the next that is free)"},
		{"API_V1_PREFIX", &c.APIPrefix, "/api/v1", "", "path before every endpoint"},
		{"DATABASE_URL", &c.DatabaseURL, "", "", "postgresql://user:password@host:5432/name; " +
			"unset: development, with a private PostgreSQL under .data/"},
		{"DATABASE_MAX_CONNS", &c.DatabaseMaxConns, "8", "2 1000",
			"most connections to PostgreSQL; 4 to 8 serve a few cores best"},
		{"DATABASE_ECHO", &c.DatabaseEcho, "false", "",
			"log statements and durations, never arguments"},
		{"SLOW_STATEMENT_MS", &c.SlowStatement, "1000", "0 60000",
			"log statements that take so many milliseconds, never arguments; 0: none"},
		{"SECRET_KEY", &c.SecretKeys, "", "", "key of 32 bytes or more (openssl rand -hex 32); " +
			"several with commas: the first signs, all verify; required with DATABASE_URL"},
		{"TOKEN_ISSUER", &c.TokenIssuer, "latch", "",
			"issuer and audience of access tokens; others are refused"},
		{"ALGORITHM", &c.Algorithm, "HS256", "HS256", "how tokens are signed"},
		{"ACCESS_TOKEN_EXPIRE_MINUTES", &c.AccessMinutes, "30", "1 1440",
			"lifetime of an access token"},
		{"REFRESH_TOKEN_EXPIRE_DAYS", &c.RefreshDays, "7", "1 30",
			"how long a session lives without a refresh; 30 days in all"},
		{"REFRESH_GRACE_SECONDS", &c.RefreshGrace, "10", "0 300",
			"how long a spent refresh token still gets its successor"},
		{"REGISTRATION_OPEN", &c.RegistrationOpen, "true", "", "whether anyone may register"},
		{"CORS_ORIGINS", &c.CORSOrigins, "", "", "origins whose pages may call the API, such as " +
			"https://app.example.com; exact, with commas"},
		{"TRUSTED_PROXIES", &c.TrustedProxies, "", "", "addresses or networks whose " +
			"X-Forwarded-For, -Proto and -Prefix, or Forwarded, are believed, with commas"},
		{"EMBEDDING_DIMENSIONS", &c.EmbeddingDimensions, "384", "1 4000",
			"numbers in an embedding; fixed at the first migration"},
		{"EMBEDDINGS_URL", &c.EmbeddingsURL, "", "",
			"provider that speaks OpenAI's /v1/embeddings, as https://api.openai.com/v1, also " +
				"with a query; unset: clients bring their own"},
		{"EMBEDDINGS_MODEL", &c.EmbeddingsModel, "", "",
			"the provider's model; fixed at the first start with one"},
		{"EMBEDDINGS_API_KEY", &c.EmbeddingsKey, "", "",
			"the provider's key, sent as a bearer token"},
		{"EMBEDDINGS_HEADER", &c.EmbeddingsHeader, "", "", "header that has the key alone " +
			"instead, as api-key, which is the default on *.azure.com"},
		{"EMBEDDINGS_BATCH", &c.EmbeddingsBatch, "32", "1 500", "most texts in one call"},
		{"EMBEDDINGS_LOAD_TIMEOUT", &c.EmbeddingsLoad, "20", "15 60", "seconds for a call after " +
			"4 minutes without one, which may load the model; others have 15"},
		{"TEXT_SEARCH_CONFIG", &c.TextSearch, "simple", "",
			"PostgreSQL's text search configuration, as english; fixed at the first migration"},
		{"LOG_LEVEL", &c.LogLevel, "", "debug,info,warn,error",
			"least level that is logged (info; debug with DEBUG); AUDIT always is"},
		{"LOG_FORMAT", &c.LogFormat, "", "json,text",
			"form of the log (json; text in development)"},
		{"METRICS_ADDR", &c.MetricsAddr, "", "", "port, or address:port, of /metrics for " +
			"Prometheus; loopback unless it names a host; unset: none"},
		{"SHUTDOWN_DELAY", &c.ShutdownDelay, "0", "0 300",
			"seconds between failing /health/db and closing, for load balancers to notice"},
	}
}

func printSettings(w io.Writer) {
	for _, row := range (&config{}).settings() {
		fmt.Fprintf(w, "  %-27s  %-9s  %s\n", row.name, row.def, row.doc)
	}
}

// loadConfig reads all settings. The error joins every problem, a line each, without values.
func loadConfig(environ []string, dotenv string) (*config, error) {
	env, cfg, names := map[string]string{}, &config{}, []string{}
	failed := map[string]bool{}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		env[name] = value
	}
	file, problems := parseDotEnv(dotenv, env)
	for _, row := range cfg.settings() {
		names = append(names, row.name, row.name+"_FILE")
		text, err := lookUp(row.name, env, file)
		if text = cmp.Or(text, row.def); err == nil && text != "" {
			err = row.set(text)
		}
		if err != nil {
			failed[row.name] = true
			problems = append(problems, fmt.Errorf("%s: %w", row.name, err))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(file)) {
		upper := strings.ToUpper(name)
		distance := func(known string) int {
			if strings.Contains(known, "_") && strings.HasSuffix(upper, "_"+known) {
				return 2 // counts as two: pydantic's env_prefix
			}
			return edits(upper, known, 2)
		}
		nearest := slices.MinFunc(names, func(a, b string) int { return distance(a) - distance(b) })
		if n := distance(nearest); n == 1 || n == 2 {
			cfg.warnings = append(cfg.warnings, fmt.Sprintf(
				".env sets %s, which is no setting; the nearest is %s", name, nearest))
		}
	}
	return cfg, errors.Join(append(problems, cfg.check(failed)...)...)
}

// edits counts insertions, deletions and replacements from a to b: exact to limit, else above it.
func edits(a, b string, limit int) int {
	for a != "" && b != "" && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	if limit == 0 || a == "" || b == "" {
		return len(a) + len(b)
	}
	limit--
	return 1 + min(edits(a[1:], b[1:], limit), edits(a[1:], b, limit), edits(a, b[1:], limit))
}

// lookUp returns the text of a setting, from the first source that has it. A source with two
// values, by two spellings of the name or its _FILE, is refused. A newline at the end is cut.
func lookUp(name string, sources ...map[string]string) (text string, err error) {
	for _, source := range sources {
		for _, key := range slices.Sorted(maps.Keys(source)) {
			value, upper := source[key], strings.ToUpper(key)
			if value == "" || strings.TrimSuffix(upper, "_FILE") != name {
				continue
			}
			if text != "" && text != value {
				return "", fmt.Errorf("is given together with %s; unset one", key)
			}
			if text = value; upper != name {
				content, err := os.ReadFile(value)
				if err != nil {
					return "", fmt.Errorf("the file that %s_FILE names cannot be read", name)
				}
				text = strings.TrimPrefix(string(content), "\ufeff") // a byte order mark
			}
		}
		if text != "" {
			return strings.TrimRight(text, "\r\n"), nil
		}
	}
	return "", nil
}

// set parses text into the field of the row.
func (row setting) set(text string) (err error) {
	switch dst := row.dst.(type) {
	case *string:
		words := strings.Split(row.rule, ",")
		i := slices.IndexFunc(words, func(w string) bool { return strings.EqualFold(w, text) })
		if i >= 0 {
			text = words[i]
		} else if row.rule != "" {
			return fmt.Errorf("must be one of %s", strings.Join(words, ", "))
		}
		*dst = text
	case *bool:
		*dst = matches(text, `^(?i:1|t|true|y|yes|on)$`)
		if !*dst && !matches(text, `^(?i:0|f|false|n|no|off)$`) {
			return errors.New("must be true or false")
		}
	case *int64:
		var lowest, highest int64
		fmt.Sscan(row.rule, &lowest, &highest)
		*dst, err = strconv.ParseInt(text, 10, 64)
		if err != nil || *dst < lowest || *dst > highest {
			return fmt.Errorf("must be a whole number from %d to %d", lowest, highest)
		}
	case *[]string:
		*dst = items(text)
	case *[]netip.Prefix:
		for _, item := range items(text) {
			network, err := netip.ParsePrefix(item)
			if a, addrErr := netip.ParseAddr(item); addrErr == nil {
				network, err = a.Prefix(a.BitLen()) // drops a zone
			}
			if err != nil {
				return errors.New("must be addresses or networks such as 10.0.0.0/8, with commas")
			}
			*dst = append(*dst, network.Masked())
		}
	}
	return nil
}

// items returns the elements of text, which has commas, or is a JSON list as pydantic reads it.
func items(text string) (list []string) {
	if !strings.HasPrefix(text, "[") || json.Unmarshal([]byte(text), &list) != nil {
		list = strings.Split(text, ",")
	}
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

// check finds what no single setting shows, and completes the defaults that depend on others. It
// does not judge the settings that have failed, which have no value.
func (c *config) check(failed map[string]bool) (problems []error) {
	failIf := func(bad bool, text string, args ...any) {
		if name, _, _ := strings.Cut(text, ":"); bad && !failed[name] {
			problems = append(problems, fmt.Errorf(text, args...))
		}
	}
	failIf(!isHost(c.Host), "HOST: must be an address or a name alone, such as 127.0.0.1, ::1 or "+
		"localhost; the port goes into PORT")
	if c.Debug {
		c.LogLevel = cmp.Or(c.LogLevel, "debug")
	}
	if c.DatabaseURL == "" {
		c.LogFormat = cmp.Or(c.LogFormat, "text")
	} else {
		problems = append(problems, c.checkDatabaseURL())
		failIf(len(c.SecretKeys) == 0, "SECRET_KEY: is required with DATABASE_URL; make one with: "+
			"openssl rand -hex 32")
	}
	c.LogLevel, c.LogFormat = cmp.Or(c.LogLevel, "info"), cmp.Or(c.LogFormat, "json")
	for i, key := range c.SecretKeys {
		why := weakKey(key, c.Debug)
		failIf(why != "", "SECRET_KEY: key %d %s; make one with: openssl rand -hex 32", i+1, why)
		failIf(slices.Contains(c.SecretKeys[:i], key), "SECRET_KEY: holds the same key twice")
	}
	failIf(!matches(c.TokenIssuer, `^[A-Za-z0-9._~:/?#@!$&()*+,;=%-]{1,200}$`), "TOKEN_ISSUER: "+
		"must be a name or a URL of at most 200 characters, as https://api.example.com")
	metricsPort := c.MetricsAddr[strings.LastIndexByte(c.MetricsAddr, ':')+1:]
	failIf(c.MetricsAddr != "" && (!isPort(metricsPort) || !matches(c.MetricsAddr,
		`^(([A-Za-z0-9._-]*|\[[0-9a-f:.]+\]):)?[0-9]+$`)),
		"METRICS_ADDR: must be a port or address:port, as 9090 or 10.0.0.5:9090")
	failIf(!plainPath.MatchString(c.APIPrefix) || path.Clean(c.APIPrefix) != c.APIPrefix,
		"API_V1_PREFIX: must be a path such as /api/v1, without a slash at the end")
	for _, origin := range c.CORSOrigins {
		failIf(!matches(origin,
			`^[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]*)?$`),
			"CORS_ORIGINS: must be exact origins such as https://app.example.com, in lower case "+
				"and without a path; * is not one")
		failIf(matches(origin, `^(http:.*:80|https:.*:443)$`), "CORS_ORIGINS: must leave out the "+
			"default port of http, 80, and of https, 443, as browsers do")
	}
	u, err := url.Parse(c.EmbeddingsURL)
	failIf(c.EmbeddingsURL != "" && (err != nil || u.Hostname() == "" ||
		!isPort(cmp.Or(u.Port(), "0")) || !matches(c.EmbeddingsURL, `^(?i:https?):[^#]*$`)),
		"EMBEDDINGS_URL: must be an http or https URL without a fragment, as "+
			"https://api.openai.com/v1")
	failIf((c.EmbeddingsURL == "") != (c.EmbeddingsModel == "") && !failed["EMBEDDINGS_URL"],
		"EMBEDDINGS_MODEL: goes together with EMBEDDINGS_URL; set both or none")
	failIf(!matches(c.EmbeddingsKey, `^[!-~]*$`), "EMBEDDINGS_API_KEY: must be printable ASCII "+
		"without spaces, as it goes into a header")
	failIf(!matches(c.EmbeddingsHeader, `^[A-Za-z0-9-]*$`), "EMBEDDINGS_HEADER: must be the name "+
		"of a header, as api-key")
	failIf(!matches(c.TextSearch, `^[a-z_][a-z0-9_]*$`), "TEXT_SEARCH_CONFIG: must be the name "+
		"of a configuration, as simple or english")
	return problems
}

var plainPath = regexp.MustCompile(`^(/[A-Za-z0-9._-]+)+$`)

func matches(text, pattern string) bool { return regexp.MustCompile(pattern).MatchString(text) }

// isHost reports whether text is an address or can be the name of a host.
func isHost(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil || matches(text, `^[A-Za-z0-9._-]+$`)
}

// isPort reports whether text is the number of a port; 0 is any that is free.
func isPort(text string) bool {
	_, err := strconv.ParseUint(text, 10, 16)
	return err == nil
}

// foreignParameters are those of other drivers, with what to write instead. What else PostgreSQL
// does not know it refuses itself, by name.
var foreignParameters = [][2]string{
	{"ssl sslaccept", "write sslmode=require"},
	{"schema currentSchema", "write search_path"},
	{"command_timeout", "write statement_timeout, in milliseconds"},
	{"connection_limit max_overflow max_size pool_max_conns pool_size",
		"set DATABASE_MAX_CONNS instead"},
	{"prepared_statement_cache_size prepared_statement_name_func statement_cache_size pgbouncer",
		"leave it out: PgBouncer is recognized by itself"},
	{"async_fallback charset gssencmode keepalives keepalives_count keepalives_idle " +
		"keepalives_interval max_inactive_connection_lifetime min_size pool_recycle pool_timeout " +
		"sslcompression tcp_user_timeout timeout", "leave it out"},
}

// checkDatabaseURL also takes SQLAlchemy's URLs: a driver in the scheme, asyncpg's ssl for sslmode.
// An @ in a password must be encoded: pgx would send what follows it to the resolver, as the host.
func (c *config) checkDatabaseURL() (problem error) {
	driver := regexp.MustCompile(`^postgres(ql)?\+\w+://`)
	ssl := regexp.MustCompile(`([?&])ssl=(disable|allow|prefer|require|verify-)`)
	c.DatabaseURL = driver.ReplaceAllString(c.DatabaseURL, "postgresql://")
	c.DatabaseURL = ssl.ReplaceAllString(c.DatabaseURL, "${1}sslmode=$2")
	conf, err := pgx.ParseConfig(c.DatabaseURL) // its error would hold the URL
	bad := func(f *pgconn.FallbackConfig) bool {
		return !isHost(f.Host) && !strings.HasPrefix(f.Host, "/")
	}
	if err != nil || !matches(c.DatabaseURL, `^postgres(ql)?://([^/?#@]*@)?[^@]*$`) ||
		slices.ContainsFunc(append(conf.Fallbacks, &pgconn.FallbackConfig{Host: conf.Host}), bad) {
		return errors.New("DATABASE_URL: must be a URL such as postgresql://user:password" +
			"@host:5432/name; signs in the password are percent-encoded (@ is %40), and files " +
			"that it names must exist")
	}
	for _, row := range foreignParameters {
		for name := range strings.FieldsSeq(row[0]) {
			if _, has := conf.RuntimeParams[name]; has {
				problem = errors.Join(problem, fmt.Errorf(
					"DATABASE_URL: has %s, which is another driver's; %s", name, row[1]))
			}
		}
	}
	return problem
}

// publicKeys are what keys hold that stand in examples and documentation, for everybody to read.
var publicKeys = []string{
	"09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7", // FastAPI's tutorial
	"a-string-secret-at-least-256-bits-long",                           // jwt.io
	"change-in-production", "changeme", "change-me", "change_me", "change-this", "changethis",
	"your-secret", "your_secret", "super-secret", "placeholder",
}

// weakKey says why a signing key must not be used, or "".
func weakKey(key string, debug bool) string {
	lower := strings.ToLower(key)
	isPublic := func(known string) bool { return strings.Contains(lower, known) }
	distinct := slices.Compact(slices.Sorted(slices.Values([]byte(key))))
	switch {
	case len(key) < 32: // the size of the hash: RFC 7518, section 3.2
		return "has fewer than 32 bytes"
	case len(distinct) < 8, // a random hexadecimal key has nearly all 16 digits
		strings.Contains((key + key)[1:2*len(key)-1], key): // abcabc is in bcabcabcab
		return "repeats the same bytes"
	case slices.ContainsFunc(publicKeys, isPublic):
		return "is a placeholder"
	case strings.Contains(lower, "development-only") && !debug:
		return "is for development only (DEBUG=true)"
	}
	return ""
}

// A value of .env may stand in single quotes, taken as it is, or in double quotes, with \\ \" \n
// \$; without quotes it ends before a space or tab and #, which start a comment. Outside single
// quotes ${NAME} is a variable of the environment or of a line above; ${NAME:-text} has a default.
var (
	dotEnvLine = regexp.MustCompile(`^(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*` +
		`(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|([^'"# \t].*?)(?:[ \t]|$)|)[ \t]*(?:#.*)?$`)
	dotEnvVariable = regexp.MustCompile(`\$\{\w+(:-[^}]*)?\}`)
	dotEnvEscape   = regexp.MustCompile(`\\[\\"n$]|` + dotEnvVariable.String())
)

// parseDotEnv reads lines NAME=value.
func parseDotEnv(text string, env map[string]string) (values map[string]string, problems []error) {
	values = map[string]string{}
	refuse := func(i int, why string) {
		problems = append(problems, fmt.Errorf(".env: line %d %s", i+1, why))
	}
	expand := func(token string) string {
		if escaped, ok := strings.CutPrefix(token, `\`); ok {
			return strings.ReplaceAll(escaped, "n", "\n")
		}
		name, fallback, hasDefault := strings.Cut(token[2:len(token)-1], ":-")
		if !hasDefault { // a variable that is not set stays as it is written
			fallback = token
		}
		return cmp.Or(env[name], values[name], fallback)
	}
	for i, line := range strings.Split(strings.TrimPrefix(text, "\ufeff"), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		m := dotEnvLine.FindStringSubmatch(line)
		if m == nil || strings.Contains(line, "\x00") {
			refuse(i, "is not NAME=value, or has an open quote or text behind one")
		} else if _, twice := values[m[1]]; twice {
			refuse(i, "sets a name that was set before")
		} else {
			single, double, unquoted := m[2], m[3], strings.TrimSpace(m[4]) // two are empty
			values[m[1]] = single + dotEnvEscape.ReplaceAllStringFunc(double, expand) +
				dotEnvVariable.ReplaceAllStringFunc(unquoted, expand)
		}
	}
	return values, problems
}
