package main

// config.go has every setting with its meaning, unit and default: the table below is what -h
// prints and what is enforced. A setting NAME comes from the environment, or from a file .env in
// the working directory, which the environment overrides. NAME_FILE names a file to read it from,
// as container secrets are given. An empty value counts as none. Values are never printed: any of
// them may be a secret in the wrong place.

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

type config struct {
	AppName             string
	Debug               bool
	Docs                bool
	Host                string
	Port                int64
	APIPrefix           string
	DatabaseURL         string
	DatabaseMaxConns    int64
	DatabaseEcho        bool
	SecretKeys          []string
	Algorithm           string
	AccessMinutes       int64
	RefreshDays         int64
	RefreshGrace        int64
	RegistrationOpen    bool
	CORSOrigins         []string
	TrustedProxies      []netip.Prefix
	EmbeddingDimensions int64
	EmbeddingsURL       string
	EmbeddingsModel     string
	EmbeddingsKey       string
	TextSearch          string
	LogLevel            string
	LogFormat           string
	MetricsAddr         string
	ShutdownDelay       int64
}

// setting is one row of the table.
type setting struct {
	name string
	to   any    // points to the field of config
	def  string // the default
	rule string // "lowest highest" of a number, or the words that are allowed, with commas
	doc  string
}

// settings returns the table, with pointers into c.
func (c *config) settings() []setting {
	return []setting{
		{"APP_NAME", &c.AppName, "Latch", "", "name of the service; refused as a password"},
		{"DEBUG", &c.Debug, "false", "",
			"log at debug level, and accept a SECRET_KEY marked development-only"},
		{"DOCS", &c.Docs, "true", "", "serve /docs and /openapi.json"},
		{"HOST", &c.Host, "127.0.0.1", "", "address to listen on; the image sets 0.0.0.0"},
		{"PORT", &c.Port, "", "1 65535",
			"port to listen on (8000; in development the next that is free)"},
		{"API_V1_PREFIX", &c.APIPrefix, "/api/v1", "", "path before every endpoint"},
		{"DATABASE_URL", &c.DatabaseURL, "", "",
			"postgresql://user:password@host:5432/name; unset: development, with a private " +
				"PostgreSQL under .data/"},
		{"DATABASE_MAX_CONNS", &c.DatabaseMaxConns, "8", "1 1000",
			"most connections to PostgreSQL; 4 to 8 serve a few cores best"},
		{"DATABASE_ECHO", &c.DatabaseEcho, "false", "",
			"log statements and durations, never arguments"},
		{"SECRET_KEY", &c.SecretKeys, "", "",
			"key of 32 bytes or more (openssl rand -hex 32); several with commas: the first " +
				"signs, all verify; required with DATABASE_URL"},
		{"ALGORITHM", &c.Algorithm, "HS256", "HS256", "how tokens are signed"},
		{"ACCESS_TOKEN_EXPIRE_MINUTES", &c.AccessMinutes, "30", "1 1440",
			"lifetime of an access token"},
		{"REFRESH_TOKEN_EXPIRE_DAYS", &c.RefreshDays, "7", "1 30",
			"how long a session lives without a refresh; 30 days in all"},
		{"REFRESH_GRACE_SECONDS", &c.RefreshGrace, "10", "0 300",
			"how long a spent refresh token still gets its successor"},
		{"REGISTRATION_OPEN", &c.RegistrationOpen, "true", "", "whether anyone may register"},
		{"CORS_ORIGINS", &c.CORSOrigins, "", "",
			"origins whose pages may call the API, such as https://app.example.com; exact, " +
				"with commas"},
		{"TRUSTED_PROXIES", &c.TrustedProxies, "", "",
			"addresses or networks whose X-Forwarded-For and -Proto are believed, with commas"},
		{"EMBEDDING_DIMENSIONS", &c.EmbeddingDimensions, "384", "1 4000",
			"numbers in an embedding; fixed at the first migration"},
		{"EMBEDDINGS_URL", &c.EmbeddingsURL, "", "",
			"provider of embeddings that speaks OpenAI's /v1/embeddings, as " +
				"https://api.openai.com/v1; unset: clients bring their own"},
		{"EMBEDDINGS_MODEL", &c.EmbeddingsModel, "", "",
			"the provider's model; fixed at the first start with one"},
		{"EMBEDDINGS_API_KEY", &c.EmbeddingsKey, "", "",
			"the provider's key, sent as a bearer token"},
		{"TEXT_SEARCH_CONFIG", &c.TextSearch, "simple", "",
			"PostgreSQL's text search configuration, as english; fixed at the first migration"},
		{"LOG_LEVEL", &c.LogLevel, "", "debug,info,warn,error",
			"least level that is logged (info; debug with DEBUG)"},
		{"LOG_FORMAT", &c.LogFormat, "", "json,text",
			"form of the log (json; text in development)"},
		{"METRICS_ADDR", &c.MetricsAddr, "", "",
			"port, or address:port, of /metrics for Prometheus; loopback unless it names a " +
				"host; unset: none"},
		{"SHUTDOWN_DELAY", &c.ShutdownDelay, "0", "0 300",
			"seconds between failing /health/db and closing, for load balancers to notice"},
	}
}

// printSettings writes the table, in columns.
func printSettings(w io.Writer) {
	for _, row := range (&config{}).settings() {
		fmt.Fprintf(w, "  %-27s  %-9s  %s\n", row.name, row.def, row.doc)
	}
}

// loadConfig reads all settings. The error joins every problem, a line each, without values.
func loadConfig(getenv func(string) string, dotenv string) (*config, error) {
	cfg := &config{}
	file, problems := parseDotEnv(dotenv)
	for _, row := range cfg.settings() {
		text, err := lookUp(row.name, getenv, func(name string) string { return file[name] })
		if text = cmp.Or(text, row.def); err == nil && text != "" {
			err = row.set(text)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", row.name, err))
		}
	}
	return cfg, errors.Join(append(problems, cfg.check()...)...)
}

// lookUp returns the text of a setting, from the first source that has it.
func lookUp(name string, sources ...func(string) string) (string, error) {
	for _, get := range sources {
		text, from := get(name), get(name+"_FILE")
		switch {
		case text != "" && from != "":
			return "", fmt.Errorf("is given together with %s_FILE; unset one", name)
		case from != "":
			content, err := os.ReadFile(from)
			if err != nil {
				return "", fmt.Errorf("the file that %s_FILE names cannot be read", name)
			}
			return strings.TrimRight(string(content), "\r\n"), nil
		case text != "":
			return text, nil
		}
	}
	return "", nil
}

// set parses text into the field of the row.
func (row setting) set(text string) (err error) {
	switch to := row.to.(type) {
	case *string:
		if row.rule != "" && !slices.Contains(strings.Split(row.rule, ","), text) {
			return fmt.Errorf("must be one of %s", strings.ReplaceAll(row.rule, ",", ", "))
		}
		*to = text
	case *bool:
		if *to, err = strconv.ParseBool(strings.ToLower(text)); err != nil {
			return errors.New("must be true or false")
		}
	case *int64:
		var lowest, highest int64
		fmt.Sscan(row.rule, &lowest, &highest)
		*to, err = strconv.ParseInt(text, 10, 64)
		if err != nil || *to < lowest || *to > highest {
			return fmt.Errorf("must be a whole number from %d to %d", lowest, highest)
		}
	case *[]string:
		for item := range strings.SplitSeq(text, ",") {
			*to = append(*to, strings.TrimSpace(item))
		}
	case *[]netip.Prefix:
		for item := range strings.SplitSeq(text, ",") {
			network, err := parseNetwork(strings.TrimSpace(item))
			if err != nil {
				return errors.New("must be addresses or networks such as 10.0.0.0/8, with commas")
			}
			*to = append(*to, network)
		}
	}
	return nil
}

// parseNetwork reads a network such as 10.0.0.0/8, or an address as a network of its own.
func parseNetwork(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil {
		return address.Prefix(address.BitLen())
	}
	network, err := netip.ParsePrefix(text)
	return network.Masked(), err
}

// check finds what no single setting shows, and completes the defaults that depend on others.
func (c *config) check() (problems []error) {
	fault := func(bad bool, text string) {
		if bad {
			problems = append(problems, errors.New(text))
		}
	}
	if after, ok := strings.CutPrefix(c.DatabaseURL, "postgresql+asyncpg://"); ok { // SQLAlchemy's
		c.DatabaseURL = "postgresql://" + after
	}
	_, err := pgxpool.ParseConfig(c.DatabaseURL) // its error would hold the URL
	isURL := fits(c.DatabaseURL, `^postgres(ql)?://`)
	fault(c.DatabaseURL != "" && (err != nil || !isURL), "DATABASE_URL: must be a URL such as "+
		"postgresql://user:password@host:5432/name; signs in the password are percent-encoded, "+
		"and files that it names must exist")
	fault(c.DatabaseURL != "" && len(c.SecretKeys) == 0, "SECRET_KEY: is required with "+
		"DATABASE_URL; make one with: openssl rand -hex 32")
	for i, key := range c.SecretKeys {
		if why := weakKey(key, c.Debug); why != "" {
			problems = append(problems, fmt.Errorf(
				"SECRET_KEY: key %d %s; make one with: openssl rand -hex 32", i+1, why))
		}
		fault(slices.Contains(c.SecretKeys[:i], key), "SECRET_KEY: holds the same key twice")
	}
	fault(!fits(c.MetricsAddr, `^(([^:]*:|\[[0-9a-f:]+\]:)?[0-9]{1,5})?$`),
		"METRICS_ADDR: must be a port or address:port, as 9090 or 10.0.0.5:9090")
	fault(!fits(c.APIPrefix, `^(/[A-Za-z0-9._-]+)+$`) || path.Clean(c.APIPrefix) != c.APIPrefix,
		"API_V1_PREFIX: must be a path such as /api/v1, without a slash at the end")
	for _, origin := range c.CORSOrigins {
		u, err := url.Parse(origin)
		fault(err != nil || u.Host == "" || u.Scheme+"://"+u.Host != origin ||
			origin != strings.ToLower(origin) || strings.Contains(origin, "*"), "CORS_ORIGINS: must "+
			"be exact origins such as https://app.example.com, in lower case and without a "+
			"path; * is not one")
	}
	if c.LogLevel == "" {
		c.LogLevel = "info"
		if c.Debug {
			c.LogLevel = "debug"
		}
	}
	if c.LogFormat == "" {
		c.LogFormat = "json"
		if c.DatabaseURL == "" {
			c.LogFormat = "text"
		}
	}
	return append(problems, c.checkEmbeddings()...)
}

func (c *config) checkEmbeddings() (problems []error) {
	u, err := url.Parse(c.EmbeddingsURL)
	if c.EmbeddingsURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" ||
		u.Host == "" || strings.ContainsAny(c.EmbeddingsURL, "?#")) {
		problems = append(problems, errors.New("EMBEDDINGS_URL: must be an http or https URL "+
			"without a query, as https://api.openai.com/v1"))
	}
	if (c.EmbeddingsURL == "") != (c.EmbeddingsModel == "") {
		problems = append(problems, errors.New("EMBEDDINGS_MODEL: goes together with "+
			"EMBEDDINGS_URL; set both or none"))
	}
	if !fits(c.EmbeddingsKey, `^[!-~]*$`) {
		problems = append(problems, errors.New("EMBEDDINGS_API_KEY: must be printable ASCII "+
			"without spaces, as it goes into a header"))
	}
	if !fits(c.TextSearch, `^[a-z_][a-z0-9_]*$`) {
		problems = append(problems, errors.New("TEXT_SEARCH_CONFIG: must be the name of a "+
			"configuration, as simple or english"))
	}
	return problems
}

func fits(text, pattern string) bool { return regexp.MustCompile(pattern).MatchString(text) }

// publicKeys are what keys hold that stand in examples and documentation, where everybody can read
// them.
var publicKeys = []string{
	"09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7", // FastAPI's tutorial
	"a-string-secret-at-least-256-bits-long",                           // jwt.io
	"change-in-production", "changeme", "change-me", "change_me", "change-this", "changethis", "your-secret", "your_secret", "super-secret", "placeholder",
}

// weakKey says why a signing key must not be used, or "".
func weakKey(key string, debug bool) string {
	lower, distinct := strings.ToLower(key), slices.Compact(slices.Sorted(slices.Values([]byte(key))))
	switch {
	case len(key) < 32: // the size of the hash: RFC 7518, section 3.2
		return "has fewer than 32 bytes"
	case len(distinct) < 8 || strings.Contains((key + key)[1:2*len(key)-1], key): // a random hex key has all 16 digits but for luck
		return "repeats the same bytes"
	case slices.ContainsFunc(publicKeys, func(known string) bool { return strings.Contains(lower, known) }):
		return "is a placeholder"
	case strings.Contains(lower, "development-only") && !debug:
		return "is for development only (DEBUG=true)"
	}
	return ""
}

// A value of .env may stand in single quotes, taken as it is, or in double quotes, with \\ \" \n
// \$; without quotes it ends before a space or tab and #, which start a comment. Nothing is
// expanded.
var (
	dotEnvLine    = regexp.MustCompile(`^(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*([^\x00]*)$`)
	dotEnvValue   = regexp.MustCompile(`^(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|([^'"#].*?)(?:[ \t]|$)|)[ \t]*(?:#.*)?$`)
	dotEnvEscapes = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n", `\$`, "$")
)

// parseDotEnv reads lines NAME=value.
func parseDotEnv(text string) (values map[string]string, problems []error) {
	values = map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		bad := func(why string) { problems = append(problems, fmt.Errorf(".env: line %d %s", i+1, why)) }
		m := dotEnvLine.FindStringSubmatch(line)
		if m == nil {
			bad("is not NAME=value")
			continue
		}
		name, v := m[1], dotEnvValue.FindStringSubmatch(m[2])
		_, twice := values[name]
		switch {
		case twice:
			bad("sets a name that was set before")
		case v == nil:
			bad("has a quote that is not closed, or text behind it")
			values[name] = ""
		default:
			values[name] = v[1] + dotEnvEscapes.Replace(v[2]) + strings.TrimSpace(v[3])
		}
	}
	return values, problems
}
